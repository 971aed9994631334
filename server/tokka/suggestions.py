"""Suggests known names for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 3
_LEAST_LIKENESS = 0.75


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the most similar known names, or "" if none is similar."""
    by_lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), by_lower, _MOST, _LEAST_LIKENESS)
    return f"; did you mean {' or '.join(by_lower[one] for one in found)}?" if found else ""
