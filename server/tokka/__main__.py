"""Runs the `tokka` program as `python -m tokka`."""

from tokka.cli import main

main()
