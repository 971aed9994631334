"""Wire formats: requests, responses and their validation. Pure data and pure functions."""
