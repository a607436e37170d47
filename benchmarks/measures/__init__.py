"""A measure per file: `measure(bench)` returns its results. Adding a file adds it to the benchmark."""
