"""KV memory: paged, with blocks that are shared, and who gets it."""
