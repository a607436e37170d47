"""Encoding, decoding and encryption of values, keys of rows, and validation of arguments; no I/O."""
