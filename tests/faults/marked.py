"""Requests whose text shows whose they are."""

from __future__ import annotations

# Long enough for many blocks of the prefix cache. The random markers after it cannot be a model's invention.
FILLER = "The herd moves slowly over the fell. " * 12


def marked(marker: str) -> str:
    # A model this small repeats text that it has just read many times.
    return FILLER + f"The secret word is {marker}. " * 6 + "The secret word is"
