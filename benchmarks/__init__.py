"""Our savers against `langgraph-checkpoint-postgres`, the stock saver: `python -m benchmarks`."""
