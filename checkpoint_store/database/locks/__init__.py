"""The thread lock of a run: its session of the server's, the requests for it, and their scheduling."""
