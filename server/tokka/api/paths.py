"""Request paths: the served path of an alias or prefixed path, and suggestions for unknown paths."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from tokka.api.path_facts import DOCUMENT, facts_of

# An alias of the API for Aitta's clients.
ALIAS_ROOT = "/openai"
ALIAS = f"{ALIAS_ROOT}/v1/"
_API = "v1"
# Maximum parts and characters of a path that gets a suggestion. A longer path is not a typo of ours.
_MOST_PARTS = 8
_MOST_CHARS = 200
_SIMILARITY = 0.8


def served_path(path: str, root_path: str = "") -> str:
    """Return the path that access rules, routes, logs and metrics use.

    `root_path`: the prefix under which a proxy publishes the server, as in --root-path.
    """
    if root_path and path.startswith(f"{root_path}/"):
        path = path[len(root_path) :]
    if path.startswith(ALIAS):
        return path[len(ALIAS_ROOT) :]
    # Probes are often configured with a trailing slash.
    bare = path[:-1]
    return bare if path[-1:] == "/" and (facts_of(bare).is_probe or bare == DOCUMENT) else path


def meant(path: str, known: Iterable[str]) -> str | None:
    """Return the known path that a client may have meant by an unknown one, or None."""
    if len(path) > _MOST_CHARS:
        return None
    paths = set(known)
    readings = list(_readings([part for part in path.split("/") if part]))
    if exact := next((reading for reading in readings if reading in paths and reading != path), None):
        return exact
    close = (difflib.get_close_matches(reading, paths, 1, _SIMILARITY) for reading in readings[:2])
    return next((matches[0] for matches in close if matches), None)


def _readings(parts: list[str]) -> Iterator[str]:
    """Yield candidate paths, longest first: each suffix of the parts, alone and below /v1."""
    for start in range(min(len(parts), _MOST_PARTS)):
        rest = "/".join(parts[start:])
        yield f"/{rest}"
        yield f"/{_API}/{rest}"
