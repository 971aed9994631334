"""Parsing of request bodies: small ones on the event loop, large ones in separate processes."""
