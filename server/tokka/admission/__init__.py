"""Admission: limits of keys, the queue, and the decisions which requests run, wait or are refused."""
