"""Core statements, built once per schema, and the executor interface that runs them; no I/O."""
