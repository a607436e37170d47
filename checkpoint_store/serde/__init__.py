"""Values to bytes and back, keys and arguments, and their validation; no I/O."""
