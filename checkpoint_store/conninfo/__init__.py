"""Connection strings, hosts, and driver errors: which are transient, and what of them may be shown."""
