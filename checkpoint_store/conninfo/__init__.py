"""Connection strings, hosts, and driver errors: which of them are transient, and copies of them without values."""
