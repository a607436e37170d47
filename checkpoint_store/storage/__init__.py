"""What one transaction does to checkpoints, blobs and writes, in sync style on an `Executor`."""
