"""Logs, metrics, and the measurement of the event loop's turns."""
