"""Request headers of an ASGI scope."""

from __future__ import annotations

from starlette.types import Scope


def header(scope: Scope, name: bytes, default: str = "") -> str:
    """Return the first value of a request header. `name`: in lower case, as all names in a scope."""
    for known, value in scope["headers"]:
        if known == name:
            text: str = value.decode("latin-1")
            return text
    return default
