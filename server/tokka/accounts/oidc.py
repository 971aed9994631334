"""Verify tokens (JWT) of an OpenID Connect issuer. A background task keeps the issuer's keys up to date."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
import jwt
import structlog

from tokka.accounts.jwks import SUPPORTED, KeySet
from tokka.accounts.keys import REFUSAL
from tokka.core import Key, KeyScope
from tokka.errors import ConfigurationError, InvalidApiKey, IssuerUnavailable, SignerUnknown
from tokka.loopback import is_loopback

log = structlog.get_logger("tokka.oidc")

# Maximum characters of a token. Tokens of large organisations, with all their groups, have 2 to 4 KB.
MAX_TOKEN_CHARS = 8192
# Prefix of tenants from tokens. Without it, a claim could name a key or a stored tenant, for example `key-1`, and use
# its quota.
PREFIX = "oidc:"

_SCOPES = frozenset[KeyScope]({"inference", "metrics", "admin"})
_MAX_TENANT_CHARS = 128
# Seconds that the issuer's clock may be ahead of ours. It does not extend a token's expiry: clients renew in time.
_LEEWAY_S = 30
# Accepted token types. "logout+jwt" and others have the same signing keys and audience, but must not give access.
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})

# Maximum number of verified tokens in memory, and seconds that each is kept.
_MAX_VERIFIED = 4096
_VERIFIED_S = 60.0

_MAX_DOCUMENT_BYTES = 1 << 20
# Maximum seconds that a request waits for the issuer's keys. After that it gets 503.
_HOLD_S = 15.0
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PARSER = jwt.PyJWS(algorithms=SUPPORTED)


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals and time limit for fetching the issuer's keys, in seconds."""

    every_s: float = 300.0
    # Minimum interval if a token's signing key is unknown. Anybody can send one of these.
    soonest_s: float = 1.0
    # Wait after the first failure. Each further failure doubles it, up to `longest_retry_s`.
    first_retry_s: float = 1.0
    longest_retry_s: float = 60.0
    # Time limit for a whole document.
    timeout_s: float = 5.0


class TokenVerifier:
    """Verify tokens with the keys in memory. `run` must run beside it, in the same event loop."""

    def __init__(
        self,
        issuer: str,
        audience: str | None,
        tenant_claim: str,
        scope_claim: str,
        *,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Check the settings. Raises ConfigurationError if the issuer's URL is invalid or the audience is missing."""
        if not _is_safe(issuer) or "?" in issuer or "#" in issuer:
            # The message omits the URL, which may contain a password.
            raise ConfigurationError(
                "--oidc-issuer must be the issuer's URL, with https (or http on loopback), in ASCII, without user, "
                "query and fragment, for example https://login.example.org/realms/lumi"
            )
        if not audience:
            raise ConfigurationError(
                "--oidc-issuer needs --oidc-audience: without it, the server would accept tokens for other services"
            )
        self._issuer = issuer
        self._rules = _Rules(issuer, audience, tenant_claim, scope_claim)
        self._pace = pace or Pace()
        self._clock = clock
        self._keys: KeySet | None = None
        self._verified = _Verified()
        self._wanted = asyncio.Event()
        # Set when the next fetch has ended.
        self._next = asyncio.Event()
        self._is_down = False
        self._delay_s = self._pace.first_retry_s

    def verify(self, token: str) -> Key:
        """Return the key that a token stands for. Raises InvalidApiKey, always with the same message.

        Raises SignerUnknown if a newer key may have signed the token: wait for `renewed` and try again. Raises
        IssuerUnavailable if the check needs keys of an issuer that is down.
        """
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise _refusal()
        now_s = self._clock()
        digest = hashlib.sha256(token.encode()).digest()
        if known := self._verified.get(digest, now_s):
            return known
        parsed = _Token.parse(token)
        # Claims before the signature: a refusal by claims costs little and never waits for keys.
        key, expires_s = self._rules.read(parsed.claims, now_s)
        self._check_signature(parsed)
        self._verified.put(digest, key, min(expires_s, now_s + _VERIFIED_S))
        return key

    def use(self, document: Any) -> None:
        """Replace the keys by the keys of a JWKS document. Raises ValueError if none is usable."""
        keys = KeySet.read(document)
        is_new = self._keys is None or keys.identity != self._keys.identity
        if is_new:
            # Forget all verified tokens, since the key of some may be gone.
            self._keys, self._verified = keys, _Verified()
        if is_new or self._is_down:
            log.info("oidc_keys_loaded", issuer=self._issuer, count=len(keys.identity))
        self._is_down = False
        self._delay_s = self._pace.every_s

    async def renewed(self) -> None:
        """Wait for a fetch that begins after this call, or for the failure of the present one.

        Raises IssuerUnavailable after `_HOLD_S` seconds.
        """
        self._wanted.set()
        try:
            async with asyncio.timeout(_HOLD_S):
                await self._next.wait()
        except TimeoutError:
            raise self._unavailable() from None

    async def run(self) -> NoReturn:
        """Keep the issuer's keys up to date, until cancelled. While the issuer is down, the last good keys are used."""
        # Reading the machine's certificates takes 0.1 s.
        async with await asyncio.to_thread(_new_client) as client:
            while True:
                self._wanted.clear()
                ended, self._next = self._next, asyncio.Event()
                try:
                    self.use(await self._fetch(client))
                except Exception as error:
                    # Any reply of the issuer may fail, and the next one may succeed.
                    self._note_failure(error)
                    # Requests that arrived during the fetch also get 503 now.
                    self._next.set()
                ended.set()
                await self._pause()

    def _check_signature(self, token: _Token) -> None:
        keys = self._keys
        key = keys.find(token.kid, token.algorithm) if keys else None
        if key and key.Algorithm.verify(token.signed, key.key, token.signature):
            return
        # The issuer may have a new key, even under a known key id.
        self._wanted.set()
        if keys is None or (self._is_down and not keys.has(token.kid)):
            raise self._unavailable()
        raise _refusal() if self._is_down else SignerUnknown(REFUSAL)

    def _unavailable(self) -> IssuerUnavailable:
        retry_after_s = max(1.0, min(self._delay_s, self._pace.soonest_s))
        return IssuerUnavailable(
            f"The token cannot be checked: the keys of its issuer are not available. Retry in {retry_after_s:.0f} s.",
            retry_after_s=retry_after_s,
        )

    async def _fetch(self, client: httpx.AsyncClient) -> dict[str, Any]:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        discovered = await _get(client, url, self._pace.timeout_s)
        if discovered.get("issuer") != self._issuer:
            raise ValueError(f"{url} names another issuer: {str(discovered.get('issuer'))[:200]!r}")
        jwks_uri = discovered.get("jwks_uri")
        if not isinstance(jwks_uri, str) or not _is_safe(jwks_uri):
            raise ValueError(f"{url} has no jwks_uri that is https, or http on loopback")
        return await _get(client, jwks_uri, self._pace.timeout_s)

    def _note_failure(self, error: Exception) -> None:
        if self._is_down:
            self._delay_s = min(self._pace.longest_retry_s, 2 * self._delay_s)
            return
        self._is_down, self._delay_s = True, self._pace.first_retry_s
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        log.warning("oidc_issuer_down", issuer=self._issuer, reason=reason, has_keys=self._keys is not None)

    async def _pause(self) -> None:
        """Wait until the next fetch. A token with an unknown key shortens the wait."""
        soonest_s = min(self._delay_s, self._pace.soonest_s)
        await asyncio.sleep(soonest_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._delay_s - soonest_s):
                await self._wanted.wait()


@dataclass(frozen=True, slots=True)
class _Token:
    """A parsed token. Nothing in it can be trusted before its signature has been checked."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, token: str) -> _Token:
        try:
            # Keys in the header (`jwk`, `jku`, `x5u`) are ignored. `_check_signature` uses the issuer's keys alone.
            parts = _PARSER.decode_complete(token, options={"verify_signature": False})
            claims = json.loads(parts["payload"])
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refusal() from None
        header = parts["header"]
        algorithm, kind = header.get("alg"), header.get("typ", "JWT")
        # `crit` lists extensions that a server must support, and Tokka supports none.
        if algorithm not in SUPPORTED or "crit" in header or not isinstance(claims, dict):
            raise _refusal()
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise _refusal()
        signed = token.rpartition(".")[0].encode()
        return cls(algorithm, header.get("kid"), claims, signed, parts["signature"])


@dataclass(frozen=True, slots=True)
class _Rules:
    """Check a token's claims, and read its key from them."""

    issuer: str
    audience: str
    tenant_claim: str
    scope_claim: str

    def read(self, claims: Mapping[str, Any], now_s: float) -> tuple[Key, float]:
        """Return the key and its expiry, in seconds since 1970. Raises InvalidApiKey."""
        audiences = claims.get("aud")
        if claims.get("iss") != self.issuer or self.audience not in (
            audiences if isinstance(audiences, list) else [audiences]
        ):
            raise _refusal()
        expires_s, begun_s = _time(claims, "exp"), now_s + _LEEWAY_S
        # Test the valid case, not the invalid one: Python's JSON accepts NaN, and every comparison with NaN is false.
        if not (now_s < expires_s and _time(claims, "nbf", 0) <= begun_s and _time(claims, "iat", 0) <= begun_s):
            raise _refusal()
        tenant = PREFIX + self._tenant(claims)
        return Key(tenant, tenant, self._scopes(claims)), expires_s

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        tenant = _claim(claims, self.tenant_claim)
        # No spaces around it: two tenants would look the same.
        if not isinstance(tenant, str) or tenant != tenant.strip() or not tenant.isprintable():
            raise _refusal()
        if not 0 < len(tenant) <= _MAX_TENANT_CHARS:
            raise _refusal()
        return tenant

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[KeyScope]:
        """Return the known scopes. A token without any is valid, but allows nothing."""
        value = _claim(claims, self.scope_claim)
        given = value.split() if isinstance(value, str) else [] if value is None else value
        if not isinstance(given, list):
            raise _refusal()
        return frozenset(scope for scope in _SCOPES if scope in given)


class _Verified:
    """Recently verified tokens, by digest. Verifying one again costs a hash."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[Key, float]] = OrderedDict()

    def get(self, digest: bytes, now_s: float) -> Key | None:
        key, until_s = self._known.get(digest, (None, now_s))
        if now_s >= until_s:
            return None
        self._known.move_to_end(digest)
        return key

    def put(self, digest: bytes, key: Key, until_s: float) -> None:
        self._known[digest] = (key, until_s)
        if len(self._known) > _MAX_VERIFIED:
            self._known.popitem(last=False)


def _new_client() -> httpx.AsyncClient:
    context = _machines_certificates()
    # Use the machine's proxy, except on loopback. Plain http is allowed on loopback only.
    direct = {f"https://{host}": httpx.AsyncHTTPTransport(verify=context) for host in _LOOPBACK}
    # No compression, so that a small body cannot become one beyond the limit.
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    return httpx.AsyncClient(
        mounts={"http://": httpx.AsyncHTTPTransport(), **direct},
        headers=headers,
        follow_redirects=False,
        verify=context,
    )


def _machines_certificates() -> ssl.SSLContext:
    """Trust the machine's certificates, private authorities included. Use httpx's list only if the machine has none."""
    context = ssl.create_default_context()
    folder = ssl.get_default_verify_paths().capath
    # OpenSSL reads a folder of certificates on demand, and does not count them before.
    if context.cert_store_stats()["x509_ca"] or (folder and any(Path(folder).iterdir())):
        return context
    return httpx.create_ssl_context(trust_env=False)


async def _get(client: httpx.AsyncClient, url: str, timeout_s: float) -> dict[str, Any]:
    """Fetch a JSON object. Raises ValueError or an error of httpx."""
    body = bytearray()
    try:
        # Limit the whole exchange. httpx limits each read, so a server that sends single bytes could hold it for ever.
        async with asyncio.timeout(timeout_s), client.stream("GET", url, timeout=None) as response:
            if response.status_code != 200:
                raise ValueError(f"{url} answered {response.status_code}")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _MAX_DOCUMENT_BYTES:
                    raise ValueError(f"{url} is larger than {_MAX_DOCUMENT_BYTES} bytes")
    except TimeoutError:
        raise ValueError(f"{url} did not answer within {timeout_s:g} s") from None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"{url} is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError(f"{url} is not a JSON object")
    return document


def _is_safe(url: str) -> bool:
    """Tell whether a URL uses https, or http on loopback, so that its replies cannot be changed on the way."""
    try:
        parts = urlsplit(url)
        host, user, _ = parts.hostname, parts.username, parts.port
    except ValueError:
        return False
    if not host or user is not None or not url.isascii() or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim with this name, else the one at this dotted path. Names may contain dots, as in
    `https://example.org/project`."""
    if name in claims:
        return claims[name]
    here: Any = claims
    for step in name.split("."):
        here = here.get(step) if isinstance(here, dict) else None
    return here


def _time(claims: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal()
    return value


def _refusal() -> InvalidApiKey:
    return InvalidApiKey(REFUSAL)
