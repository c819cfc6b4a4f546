"""The worker's main process: from a message to a batch in the pool, and back to the broker."""
