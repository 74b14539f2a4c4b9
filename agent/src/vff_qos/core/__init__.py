"""Pure logic: bytes, dicts and numbers in, bytes, dicts and plans out."""
