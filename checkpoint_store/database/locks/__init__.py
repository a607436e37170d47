"""The per-thread run lock: its session of the server's, the requests for it, and how they wait."""
