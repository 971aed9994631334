"""Where a server listens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    # As in the Host header.
    netloc: str
    # Before /v1.
    prefix: str
    tls: ssl.SSLContext | None


def address_of(url: str) -> Address:
    """Read a base URL. Raises ValueError if it is none."""
    try:
        found = httpx.URL(url)
        port = found.port
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if found.scheme not in ("http", "https") or not found.host:
        raise ValueError(f"{url!r} is not like http://127.0.0.1:8000")
    tls = ssl.create_default_context() if found.scheme == "https" else None
    # The base URL of OpenAI's clients ends so.
    prefix = found.path.rstrip("/").removesuffix("/v1")
    return Address(found.host, port or (443 if tls else 80), found.netloc.decode(), prefix, tls)
