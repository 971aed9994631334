"""Tokka: an OpenAI-compatible inference server over vLLM's engine."""

__version__ = "0.2.0"
