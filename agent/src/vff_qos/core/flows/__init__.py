"""Live flows: which there are, whose they are."""
