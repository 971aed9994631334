"""Signs that a request came through a proxy or from a web page of another site. Pure: the scope is an argument.

A server without keys serves only direct requests from its own machine. A proxy on the same machine connects from
loopback as well, so the peer's address alone is not enough.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import Scope

from tokka.api.headers import header

# Headers that proxies, tunnels and CDNs add, and that programs on the same machine have no reason to send.
_PROXY_HEADERS = frozenset(
    {
        *(b"via", b"cdn-loop", b"client-ip", b"true-client-ip", b"x-client-ip", b"x-cluster-client-ip"),
        *(b"proxy-client-ip", b"wl-proxy-client-ip", b"incap-client-ip", b"x-remote-addr", b"x-remote-ip"),
        *(b"x-host", b"x-scheme", b"x-rewrite-url", b"x-nginx-proxy", b"x-varnish", b"x-amz-cf-id"),
    }
)
_PROXY_PREFIXES = (
    *(b"forwarded", b"x-forward", b"x-real-", b"x-original-", b"x-proxyuser-", b"x-ssl-", b"x-envoy-"),
    *(b"cf-", b"cloudfront-", b"fastly-", b"fly-", b"akamai-", b"x-akamai-", b"x-appengine-", b"x-azure-"),
    *(b"x-sucuri-", b"x-vercel-", b"tailscale-"),
)
# Maximum characters of a header that an error message quotes.
_SHOWN_CHARS = 100


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign that a request is not direct, as a clause for an error message."""

    text: str
    # A web page of another site sent the request. If false, it came through a proxy or from another machine.
    is_page: bool = False


def indirect_sign(scope: Scope, allowed_origins: Collection[str] = ()) -> Sign | None:
    """Return a sign that the request is not direct, or None.

    `allowed_origins`: origins whose pages may call the API, as in --cors-origin; `*` means all.
    """
    client = scope.get("client")
    if client and not _is_loopback(client[0]):
        return Sign(f"the peer {client[0]} is another machine")
    host = origin = site = ""
    for name, raw in scope["headers"]:
        if name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIXES):
            return Sign(f"the header `{_shown(name)}` shows a proxy")
        if name == b"host":
            host = raw.decode("latin-1").strip()
            if not names_this_machine(host):
                return Sign(f"`Host: {_shown(raw)}` does not name this machine")
        elif name == b"connection" and scope["http_version"] == "1.0" and b"close" in raw.lower():
            # HTTP/1.0 closes by default. nginx's plain proxy_pass still sends the header; hardly any client does.
            return Sign("HTTP/1.0 with `Connection: close` shows a proxy, such as nginx's proxy_pass")
        elif name == b"origin":
            origin = raw.decode("latin-1").strip()
        elif name == b"sec-fetch-site":
            site = raw.decode("latin-1").strip().lower()
    if origin and ("*" in allowed_origins or origin in allowed_origins):
        return None
    if sign := _sign_of_origin(origin, host):
        return sign
    if site == "cross-site":
        return Sign("`Sec-Fetch-Site: cross-site` shows a page of another site", is_page=True)
    return None


def foreign_page(scope: Scope, allowed_origins: Collection[str] = ()) -> Sign | None:
    """Return a sign that a page of another site sent the request, or None. `allowed_origins`: as in `indirect_sign`."""
    origin = header(scope, b"origin").strip()
    is_allowed = "*" in allowed_origins or origin in allowed_origins
    return None if is_allowed else _sign_of_origin(origin, header(scope, b"host").strip())


def names_this_machine(host: str) -> bool:
    """Return whether a Host header can belong to a direct request: a loopback address or name, or a name without dots.

    Other names come from a proxy, or from a page that points its own domain at this machine.
    """
    name = _name_of(host)
    return ("." not in name and ":" not in name) or _is_loopback_name(name)


def _sign_of_origin(origin: str, host: str) -> Sign | None:
    if not origin or _is_own_origin(origin, host):
        return None
    return Sign(f"`Origin: {origin[:_SHOWN_CHARS]}` is a page of another site", is_page=True)


def _is_own_origin(origin: str, host: str) -> bool:
    """Return whether the page of an Origin header comes from this machine."""
    scheme, _, authority = origin.partition("://")
    if scheme not in ("http", "https") or not authority:
        return False
    return authority == host or _is_loopback_name(_name_of(authority))


def _name_of(authority: str) -> str:
    """Return the name or address of `name:port`, without the brackets of IPv6."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].rstrip(".").lower()


def _is_loopback_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


# Cached, because parsing an address takes longer than all other checks of a request.
@lru_cache(maxsize=64)
def _is_loopback(address: str) -> bool:
    """Return whether an IP address is loopback. 0.0.0.0 and :: count, because they connect to loopback as well."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A dual-stack socket reports an IPv4 peer as a mapped IPv6 address.
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return parsed.is_unspecified or (mapped or parsed).is_loopback


def _shown(raw: bytes) -> str:
    return raw[:_SHOWN_CHARS].decode("latin-1")
