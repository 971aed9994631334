"""Anthropic's Messages API: requests, events and responses, models. Pure."""
