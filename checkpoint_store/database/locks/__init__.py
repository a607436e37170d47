"""The thread lock of a run: the session that takes and awaits it, the requests, and pauses in greenlets and threads."""
