"""`python -m tokka`."""

from tokka.cli import main

main()
