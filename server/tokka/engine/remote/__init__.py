"""The engine of a worker process, as a gateway sees it."""
