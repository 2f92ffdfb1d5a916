"""Programs that run inside the sandbox: of Python's library alone, and each other by plain name."""
