"""The facts about each path that are needed before its request is routed: access, counting, form of its errors.

Deny by default: a path without an entry needs a key with the scope `inference`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

METRICS = "/metrics"
ADMIN = "/admin/"
DOCUMENT = "/openapi.json"
# The files of the API's reference.
REFERENCE_ASSETS = "/docs-assets"


@dataclass(frozen=True, slots=True)
class PathFacts:
    """How the server treats requests on a path."""

    # probe, page: no key. Probes must work from other machines, and reveal nothing about users. The chat page asks for
    # a key itself, and the API reference holds no secret; the API calls they make need a key.
    access: Literal["probe", "page", "metrics", "admin", "inference"] = "inference"
    # A POST counts against the request limits of its key.
    is_counted: bool = False
    # A POST is recorded as a generation: in the metrics, the usage and the access line.
    is_generation: bool = False
    # Errors have the body of OAuth (RFC 6749), as in Aitta's API.
    speaks_oauth: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the path needs no key."""
        return self.access in ("probe", "page")


_DEFAULT = PathFacts()
_PROBE, _PAGE = PathFacts("probe"), PathFacts("page")
_COUNTED = PathFacts(is_counted=True)
_GENERATION = replace(_COUNTED, is_generation=True)
_AITTA = PathFacts(speaks_oauth=True)
_AITTA_PARTS = ("/model", "/worker", "/status", "/downtimes", "/authenticate_with_key")
_PATHS = {
    **dict.fromkeys(("/livez", "/readyz", "/startupz", "/health", "/version"), _PROBE),
    **dict.fromkeys(("/", "/docs", "/docs/", DOCUMENT), _PAGE),
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions"), _GENERATION),
    **dict.fromkeys(("/tokenize", "/detokenize"), _COUNTED),
    **dict.fromkeys(_AITTA_PARTS, _AITTA),
    METRICS: PathFacts("metrics"),
}
# All paths below these.
_FOLDERS = {
    **dict.fromkeys(("/ui/", f"{REFERENCE_ASSETS}/"), _PAGE),
    **{f"{part}/": _AITTA for part in _AITTA_PARTS},
    ADMIN: PathFacts("admin"),
}


def facts_of(path: str) -> PathFacts:
    """Return the facts about a path as it is served; see `served_path`."""
    if facts := _PATHS.get(path):
        return facts
    end = path.find("/", 1)
    return _FOLDERS.get(path[: end + 1], _DEFAULT) if end > 0 else _DEFAULT
