"""Pure logic: batches in, batches out. Knows nothing of processes, channels or checkpoints."""
