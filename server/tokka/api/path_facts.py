"""The facts about each path that are needed before its request is routed: access, counting, form of its errors.

Deny by default: a path without an entry needs a key with the scope `inference`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokka.core import KeyScope

METRICS = "/metrics"
ADMIN = "/admin/"
DOCUMENT = "/openapi.json"
# The files of the API's reference.
REFERENCE_ASSETS = "/docs-assets"


@dataclass(frozen=True, slots=True)
class PathFacts:
    """How the server treats requests on a path."""

    # The scope of a key for it. None: no key. Probes must work from other machines, and reveal nothing about users. The
    # chat page asks for a key itself, and the API reference holds no secret; the API calls they make need a key.
    scope: KeyScope | None = "inference"
    is_probe: bool = False
    # A POST counts against the request limits of its key.
    is_counted: bool = False
    # A POST is recorded as a generation: in the metrics, the usage and the access line.
    is_generation: bool = False
    # A body may have thousands of texts, each as long as the model's context.
    is_bulk: bool = False
    # Errors have the body of OAuth (RFC 6749), as in Aitta's API.
    speaks_oauth: bool = False
    # Keys, errors and the header of the request id are Anthropic's.
    speaks_anthropic: bool = False


_DEFAULT = PathFacts()
_PROBE, _PAGE = PathFacts(None, is_probe=True), PathFacts(None)
_COUNTED = PathFacts(is_counted=True)
_GENERATION = replace(_COUNTED, is_generation=True)
_ANTHROPIC = PathFacts(speaks_anthropic=True)
_AITTA = PathFacts(speaks_oauth=True)
_AITTA_PARTS = ("/model", "/worker", "/status", "/downtimes", "/authenticate_with_key")
_PATHS = {
    **dict.fromkeys(("/livez", "/readyz", "/startupz", "/health", "/version"), _PROBE),
    **dict.fromkeys(("/", "/docs", "/docs/", DOCUMENT), _PAGE),
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/compact"), _GENERATION),
    **dict.fromkeys(
        ("/v1/embeddings", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score"), replace(_GENERATION, is_bulk=True)
    ),
    **dict.fromkeys(("/tokenize", "/detokenize", "/v1/responses/input_tokens"), _COUNTED),
    "/v1/messages": replace(_GENERATION, speaks_anthropic=True),
    "/v1/messages/count_tokens": replace(_COUNTED, speaks_anthropic=True),
    **dict.fromkeys(_AITTA_PARTS, _AITTA),
    METRICS: PathFacts("metrics"),
}
_MESSAGES = "/v1/messages/"
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
    if path.startswith(_MESSAGES):
        return _ANTHROPIC
    end = path.find("/", 1)
    return _FOLDERS.get(path[: end + 1], _DEFAULT) if end > 0 else _DEFAULT
