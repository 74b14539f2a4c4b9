"""Measures the agent natively, in a network namespace of its own; see __main__.py."""
