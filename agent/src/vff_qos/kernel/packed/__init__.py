"""Netlink packed by hand: what thousands of flows and classes go through."""
