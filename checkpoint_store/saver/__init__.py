"""LangGraph's checkpointer interface: signatures, docstrings, encode, run, decode; no SQL."""
