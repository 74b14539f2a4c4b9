"""Plans: what the kernel should have, compared with what it has."""
