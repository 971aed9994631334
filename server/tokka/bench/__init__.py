"""A load on a running server and what came of it: requests, moments, figures. Behind `tokka bench`."""
