"""Encoding, decoding and encryption of values; keys of rows, such as thread ids; validation of other arguments; no I/O."""
