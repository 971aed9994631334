"""Addresses of servers, and how to reach them from this machine."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from tokka.loopback import is_loopback


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, from its base URL."""

    host: str
    port: int
    # As in the Host header.
    netloc: str
    # The path before /v1.
    prefix: str
    tls: ssl.SSLContext | None


def client_options(url: str) -> dict[str, Any]:
    """Return httpx options for a server. A server on this machine is reached without the environment's proxy."""
    try:
        is_direct = is_loopback(httpx.URL(url).host)
    except httpx.InvalidURL:
        is_direct = False
    # `trust_env=False` also makes httpx ignore SSL_CERT_FILE, so read it here.
    return {"trust_env": False, "verify": httpx.create_ssl_context()} if is_direct else {}


def address_of(url: str) -> Address:
    """Return the address in a base URL. Raises ValueError if the URL is invalid."""
    try:
        found = httpx.URL(url)
        port = found.port
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if found.scheme not in ("http", "https") or not found.host:
        raise ValueError(f"{url!r} is not the URL of a server, for example http://127.0.0.1:8000")
    tls = ssl.create_default_context() if found.scheme == "https" else None
    # The base URLs of OpenAI's clients end with /v1.
    prefix = found.path.rstrip("/").removesuffix("/v1")
    return Address(found.host, port or (443 if tls else 80), found.netloc.decode(), prefix, tls)
