"""Reads a model's output: its reasoning, its tool calls, and the remaining text."""
