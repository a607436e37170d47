"""The connection, event loop or thread, and transaction in which a call runs, and how often it is retried."""
