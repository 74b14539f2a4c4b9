"""Flows: which ones the kernel has, and which of them a claim means."""
