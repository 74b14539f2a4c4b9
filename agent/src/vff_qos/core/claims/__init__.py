"""Claims: what text says of whose flow it is, and whether to believe it."""
