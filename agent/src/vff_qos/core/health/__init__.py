"""Facts in, findings out: every verdict is made here, and shown the same everywhere."""
