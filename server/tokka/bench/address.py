"""Where a server listens, and how it is reached from here."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from tokka.loopback import is_loopback


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    # As in the Host header.
    netloc: str
    # Before /v1.
    prefix: str
    tls: ssl.SSLContext | None


def client_options(url: str) -> dict[str, Any]:
    """Return the options of an httpx client for a server: a proxy of the environment cannot reach this machine."""
    try:
        is_direct = is_loopback(httpx.URL(url).host)
    except httpx.InvalidURL:
        is_direct = False
    # Without the environment the client would not read SSL_CERT_FILE either.
    return {"trust_env": False, "verify": httpx.create_ssl_context()} if is_direct else {}


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
