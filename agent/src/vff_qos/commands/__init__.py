"""The commands, and what several of them need."""
