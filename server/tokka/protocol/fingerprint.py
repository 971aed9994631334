"""Fingerprints: one hash of the work that a request gives the engine.

Equal bodies have equal fingerprints, regardless of sender and time. Each field of the request, and of the data in it,
is hashed with its name, unless NOT_SEEN lists it. Large values are hashed in C: text and token ids as bytes, messages
and schemas as JSON. A short chat takes 35 us, the largest body 50 ms of CPU time, so the processes of `parsing/` hash
the bodies that they parse.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import orjson

from tokka.core import Constraint, GenerateRequest, Image, TextPrompt, TokensPrompt

# Fields that the engine's work does not depend on.
NOT_SEEN: Mapping[type, frozenset[str]] = {
    GenerateRequest: frozenset(
        {
            # The sender and the served name. All names of a model belong to one engine.
            *("id", "tenant", "model", "fingerprint"),
            # Field names in error messages.
            *("prompt_param", "limit_param"),
            # Scheduling and cache. A new salt for each retry would otherwise make each retry a new request.
            *("timeout_s", "priority", "cache_salt"),
            # The key's limit, and how the response is delivered.
            *("max_tokens_cap", "stream", "keeps_answer"),
            # A resumed request is the same request.
            "resume",
        }
    ),
    Constraint: frozenset({"param"}),
    Image: frozenset({"param"}),
    TextPrompt: frozenset({"param"}),
    TokensPrompt: frozenset({"param"}),
}
# Characters of a text that are encoded at once, to avoid a copy of a long text.
_TEXT_PART = 1 << 20


def fingerprint_of(request: GenerateRequest) -> bytes:
    """Return 32 bytes that are equal for requests that give the engine the same work."""
    if request.fingerprint is not None:
        return request.fingerprint
    hasher = hashlib.sha256()
    _feed(hasher, request)
    return hasher.digest()


def _feed(hasher: Any, value: Any) -> None:
    """Hash a value after its kind and size, so that different values never become the same bytes."""
    if is_dataclass(value) and not isinstance(value, type):
        names = _seen(type(value))
        _begin(hasher, type(value).__name__, len(names))
        for name in names:
            _begin(hasher, name, 0)
            _feed(hasher, getattr(value, name))
    elif isinstance(value, str):
        _begin(hasher, "text", len(value))
        for at in range(0, len(value), _TEXT_PART):
            hasher.update(value[at : at + _TEXT_PART].encode("utf-8", "surrogatepass"))
    elif isinstance(value, array):
        _begin(hasher, f"array {value.typecode}", len(value))
        hasher.update(memoryview(value))
    elif isinstance(value, frozenset):
        _feed_json(hasher, "set", sorted(value))
    elif isinstance(value, tuple) and value and is_dataclass(value[0]):
        _begin(hasher, "tuple", len(value))
        for item in value:
            _feed(hasher, item)
    else:
        _feed_json(hasher, "json", value)


def _feed_json(hasher: Any, kind: str, value: Any) -> None:
    try:
        data = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        # orjson refuses whole numbers of more than 64 bits.
        data = json.dumps(value).encode()
    _begin(hasher, kind, len(data))
    hasher.update(data)


def _begin(hasher: Any, kind: str, size: int) -> None:
    hasher.update(f"{kind} {size}\n".encode())


@cache
def _seen(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.name not in NOT_SEEN.get(kind, ()))
