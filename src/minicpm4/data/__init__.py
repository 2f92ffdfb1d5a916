"""Text on its way to a trainer: packed shards, and batches as a function of seed and step."""
