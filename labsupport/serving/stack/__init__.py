"""Several processes: API servers without weights, a queue in Redis, and engine workers."""
