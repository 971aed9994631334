"""Engines: their interface, implementations and supervision, and the arithmetic of models and requests."""
