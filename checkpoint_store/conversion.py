"""Conversion of stored values into shared pages, and back into plain blobs, while the database is in use."""

from checkpoint_store.tools.conversion import inline, share

__all__ = ["inline", "share"]
