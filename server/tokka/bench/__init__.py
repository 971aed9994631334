"""Load a running server and measure it: plans, requests, records and figures. Behind `tokka bench`."""
