"""Child processes that work on untrusted input, without files, network or other processes."""
