"""Encoding, decoding and encryption of values; keys of rows, such as thread ids; validation of arguments; no I/O."""
