"""Request headers of an ASGI scope."""

from __future__ import annotations

from starlette.types import Scope

from tokka.errors import InvalidRequest

_MOST_WAIT_S = 3600


def header(scope: Scope, name: bytes, default: str = "") -> str:
    """Return the first value of a request header. `name`: in lower case, as all names in a scope."""
    for known, value in scope["headers"]:
        if known == name:
            text: str = value.decode("latin-1")
            return text
    return default


def held_s(scope: Scope, default_s: float) -> float:
    """Return the seconds that a stream waits for a model without a replica. Raises InvalidRequest."""
    given = header(scope, b"x-tokka-wait")
    if not given:
        return default_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_WAIT_S:
        raise InvalidRequest(f"The header x-tokka-wait must be a number of seconds from 0 to {_MOST_WAIT_S}.")
    return seconds
