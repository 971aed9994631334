"""Access control: which paths need a key, which scope each needs, and which requests a server without keys serves.

Deny by default. The decision uses only the path, the headers and the peer address, before the request is routed and
its body read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.types import Scope

from tokka.accounts.keys import KeyRing
from tokka.api.direct import Sign, foreign_page, indirect_sign
from tokka.api.headers import header
from tokka.api.path_facts import ADMIN, METRICS, facts_of
from tokka.core import ANONYMOUS, Key, KeyScope
from tokka.errors import PermissionDenied, SignerUnknown

_KEY_REMEDY = "Make a key with `tokka keys create --name NAME` and send it as `Authorization: Bearer KEY`."
_ADMIN_REMEDY = "Send a key made with `tokka keys create --name NAME --scope admin`, or set with --admin-key-file."
_METRICS_REMEDY = (
    "Send a key made with `tokka keys create --name NAME --scope metrics`, or set with --metrics-key-file."
)


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Rules for requests without a key."""

    # Serve /metrics to everyone.
    metrics_open: bool
    # The server listens on loopback or on a unix socket.
    on_loopback: bool
    # Without keys, serve everyone, not only direct requests from this machine.
    no_auth: bool
    # Origins whose pages may call the API; `*` means all.
    cors_origins: frozenset[str] = frozenset()


class Authentication:
    """Find the key of each request, and refuse requests that the key or its absence does not allow."""

    def __init__(self, keys: KeyRing, rules: AccessRules) -> None:
        self._keys = keys
        self._rules = rules

    async def check(self, scope: Scope) -> None:
        """Write the key into the request's record, and tell the connection. Raises PermissionDenied, InvalidApiKey."""
        state = scope["state"]
        state["record"].key = key = await self._key_of(scope)
        if "on_authenticated" in state and facts_of(scope["path"]).scope is not None:
            state["on_authenticated"](key)

    async def _key_of(self, scope: Scope) -> Key:
        path = scope["path"]
        needed = facts_of(path).scope
        if needed is None or (path == METRICS and self._rules.metrics_open):
            return ANONYMOUS
        if not self._keys.is_protected:
            self._check_keyless(scope)
            return ANONYMOUS
        # A preflight carries no credentials. With --cors-origin, the CORS middleware has already answered it.
        authorization = _authorization(scope)
        try:
            key = self._keys.verify(authorization, time.time())
        except SignerUnknown:
            # Either the issuer has new signing keys or the token is forged. Only the issuer's current keys can tell.
            key = await self._keys.verify_renewed(authorization, time.time())
        _check_scope(needed, key)
        return key

    def _check_keyless(self, scope: Scope) -> None:
        """Raise PermissionDenied unless a server without keys serves this request."""
        path, rules = scope["path"], self._rules
        if facts_of(path).scope == "admin":
            raise PermissionDenied(f"{ADMIN} always needs a key with the scope `admin`. {_ADMIN_REMEDY}")
        if path == METRICS and not rules.on_loopback:
            raise PermissionDenied(
                f"{METRICS} needs a key with the scope `metrics` unless this server is on loopback. {_METRICS_REMEDY} "
                "Or start the server with --metrics-open."
            )
        if rules.no_auth and path != METRICS:
            # A browser asks for no permission before it opens a WebSocket to another site.
            if "upgrade" in scope["state"] and (page := foreign_page(scope, rules.cors_origins)):
                raise PermissionDenied(f"{page.text}. Start the server with --cors-origin for this page.")
            return
        if sign := indirect_sign(scope, rules.cors_origins):
            raise PermissionDenied(
                f"Without keys, this server serves only direct requests from its own machine, but {sign.text}. "
                f"{_remedy_for(path, sign)}"
            )


def _authorization(scope: Scope) -> str:
    """Return the Authorization header. Anthropic's clients may send the key as `x-api-key` instead."""
    given = header(scope, b"authorization")
    if given or not (facts_of(scope["path"]).speaks_anthropic or header(scope, b"anthropic-version")):
        return given
    key = header(scope, b"x-api-key")
    return f"Bearer {key}" if key else ""


def _check_scope(needed: KeyScope, key: Key) -> None:
    if needed in key.scopes or (needed == "metrics" and "admin" in key.scopes):
        return
    remedy = {"admin": f" {_ADMIN_REMEDY}", "metrics": f" {_METRICS_REMEDY}"}.get(needed, "")
    raise PermissionDenied(f"This key lacks the scope `{needed}`.{remedy}")


def _remedy_for(path: str, sign: Sign) -> str:
    """Return the remedy for a refused request without a key."""
    if path == METRICS:
        return f"{_METRICS_REMEDY} Or start the server with --metrics-open."
    option = "--cors-origin for this page" if sign.is_page else "--no-auth to serve everyone"
    return f"{_KEY_REMEDY} Or start the server with {option}."
