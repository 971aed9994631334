"""Launchers start, list and stop `tokka worker` processes. They do nothing else: the plan decides how many."""
