"""Prometheus' view of the node: the figures of ``status`` and ``usage`` under other names."""
