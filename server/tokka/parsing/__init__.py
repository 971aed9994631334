"""Parsing of request bodies: small ones at once, large ones in processes of their own."""
