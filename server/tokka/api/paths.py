"""Paths: what a client asked for as the path that is served, and what a wrong one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

# Probes and the version.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/version"})
DOCUMENT = "/openapi.json"
# The files of the API's reference.
REFERENCE_ASSETS = "/docs-assets"
# The same API by another address, for clients of Aitta.
ALIAS_ROOT = "/openai"
ALIAS = f"{ALIAS_ROOT}/v1/"
_API = "v1"
# A longer path is no typing error of a path of ours.
_MOST_PARTS = 8
_MOST_CHARS = 200
_SIMILARITY = 0.8


def served_path(path: str, root_path: str = "") -> str:
    """Return the path by which keys, logs, metrics and routes know a request.

    `root_path`: the prefix under which a proxy publishes the server, as in --root-path.
    """
    if root_path and path.startswith(f"{root_path}/"):
        path = path[len(root_path) :]
    if path.startswith(ALIAS):
        return path[len(ALIAS_ROOT) :]
    # Probes are often configured with a slash at the end.
    bare = path[:-1]
    return bare if path[-1:] == "/" and (bare in OPEN_PATHS or bare == DOCUMENT) else path


def meant(path: str, known: Iterable[str]) -> str | None:
    """Return the known path that a client may have meant by an unknown one, None if none is near."""
    if len(path) > _MOST_CHARS:
        return None
    paths = set(known)
    readings = list(_readings([part for part in path.split("/") if part]))
    if exact := next((reading for reading in readings if reading in paths and reading != path), None):
        return exact
    close = (difflib.get_close_matches(reading, paths, 1, _SIMILARITY) for reading in readings[:2])
    return next((matches[0] for matches in close if matches), None)


def _readings(parts: list[str]) -> Iterator[str]:
    """Yield what the parts may have meant, the longest first: each end of them, and that below /v1."""
    for start in range(min(len(parts), _MOST_PARTS)):
        rest = "/".join(parts[start:])
        yield f"/{rest}"
        yield f"/{_API}/{rest}"


class ServedPath:
    """Outermost: from here on a request has the path that is served."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = served_path(scope["path"], self._root_path)
            if path != scope["path"]:
                scope = {**scope, "path": path}
        await self._app(scope, receive, send)
