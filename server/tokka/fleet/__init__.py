"""Engines in other processes: the gateway's listener, the worker's side, and the connection between them."""
