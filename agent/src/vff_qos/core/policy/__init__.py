"""Policy: who gets what, and why."""
