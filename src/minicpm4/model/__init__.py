"""The decoder: typed weights, key/value pages, and the one forward pass over an op table."""
