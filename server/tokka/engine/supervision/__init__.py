"""Starts, watches, restarts and ends the engine and its processes."""
