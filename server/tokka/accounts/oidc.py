"""Who is asking: tokens (JWT) signed by an OpenID Connect issuer, whose keys are kept up to date in the background."""

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

# Tokens of large organisations, with all their groups, have 2 to 4 KB.
MAX_TOKEN_CHARS = 8192
# Before a claim: else it could name a key or a stored tenant, `key-1` say, and spend what that may use.
PREFIX = "oidc:"

_SCOPES = frozenset[KeyScope]({"inference", "metrics", "admin"})
_MAX_TENANT_CHARS = 128
# Between the issuer's clock and ours. An expired token is expired: its holder renews it before.
_LEEWAY_S = 30
# "logout+jwt" and others are signed by the same keys for the same audience, and let nobody in.
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})

_MAX_VERIFIED = 4096
_VERIFIED_S = 60.0

_MAX_DOCUMENT_BYTES = 1 << 20
# Seconds that a request waits for the issuer's keys. Beyond: 503.
_HOLD_S = 15.0
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PARSER = jwt.PyJWS(algorithms=SUPPORTED)


@dataclass(frozen=True, slots=True)
class Pace:
    """When the issuer is asked for its keys, and how long it may take to answer."""

    every_s: float = 300.0
    # For a token that no key in memory has signed: anybody can send such tokens.
    soonest_s: float = 1.0
    # After a failure, then twice as long each time.
    first_retry_s: float = 1.0
    longest_retry_s: float = 60.0
    # Of one document, from first to last.
    timeout_s: float = 5.0


class TokenVerifier:
    """Tells whose a token is, from memory alone; `run` has to run beside it. Both in one event loop's thread."""

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
        """Raises ConfigurationError."""
        if not _is_safe(issuer) or "?" in issuer or "#" in issuer:
            # Without the URL: it may hold a password.
            raise ConfigurationError(
                "--oidc-issuer must be the URL of an issuer: https (http on loopback only), in ASCII, without user, "
                "query and fragment, as in https://login.example.org/realms/lumi"
            )
        if not audience:
            raise ConfigurationError(
                "--oidc-issuer needs --oidc-audience: else tokens that are meant for other services are accepted"
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
        """Return whose token it is. Raises InvalidApiKey, the same whatever was wrong.

        Raises SignerUnknown if a newer key may have signed it: wait for `renewed` and try again. Raises
        IssuerUnavailable if only the issuer's keys can tell and the issuer is down.
        """
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise _refusal()
        now_s = self._clock()
        digest = hashlib.sha256(token.encode()).digest()
        if known := self._verified.get(digest, now_s):
            return known
        parsed = _Token.parse(token)
        # Before the signature: what is refused whoever has signed it costs little, and never waits for keys.
        key, expires_s = self._rules.read(parsed.claims, now_s)
        self._check_signature(parsed)
        self._verified.put(digest, key, min(expires_s, now_s + _VERIFIED_S))
        return key

    def use(self, document: Any) -> None:
        """Replace the keys by those of a JWKS document. Raises ValueError if there is none of use in it."""
        keys = KeySet.read(document)
        is_new = self._keys is None or keys.identity != self._keys.identity
        if is_new:
            # A key that is gone takes along what it has signed.
            self._keys, self._verified = keys, _Verified()
        if is_new or self._is_down:
            log.info("oidc_keys_loaded", issuer=self._issuer, count=len(keys.identity))
        self._is_down = False
        self._delay_s = self._pace.every_s

    async def renewed(self) -> None:
        """Wait for a fetch of the issuer's keys that begins after this call. Raises IssuerUnavailable."""
        self._wanted.set()
        try:
            async with asyncio.timeout(_HOLD_S):
                await self._next.wait()
        except TimeoutError:
            raise self._unavailable() from None

    async def run(self) -> NoReturn:
        """Keep the issuer's keys up to date; runs until cancelled. The last good ones are used while it is down."""
        # Reading the machine's certificates takes 0.1 s.
        async with await asyncio.to_thread(_new_client) as client:
            while True:
                self._wanted.clear()
                ended, self._next = self._next, asyncio.Event()
                try:
                    self.use(await self._fetch(client))
                except Exception as error:
                    # Whatever the issuer sends, the next one may be better.
                    self._note_failure(error)
                    # Requests that came during the fetch get 503 as well.
                    self._next.set()
                ended.set()
                await self._pause()

    def _check_signature(self, token: _Token) -> None:
        keys = self._keys
        key = keys.find(token.kid, token.algorithm) if keys else None
        if key and key.Algorithm.verify(token.signed, key.key, token.signature):
            return
        # The issuer may have a new key, also under a known name.
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
            raise ValueError(f"{url} is of the issuer {str(discovered.get('issuer'))[:200]!r}")
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
        """Wait until the issuer is to be asked again: sooner when a token has a key that is unknown."""
        soonest_s = min(self._delay_s, self._pace.soonest_s)
        await asyncio.sleep(soonest_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._delay_s - soonest_s):
                await self._wanted.wait()


@dataclass(frozen=True, slots=True)
class _Token:
    """A token taken apart. Nothing in it is true before its signature has been checked."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, token: str) -> _Token:
        try:
            # Never a key out of the header (`jwk`, `jku`, `x5u`): the signature is checked with ours, in one place.
            parts = _PARSER.decode_complete(token, options={"verify_signature": False})
            claims = json.loads(parts["payload"])
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refusal() from None
        header = parts["header"]
        algorithm, kind = header.get("alg"), header.get("typ", "JWT")
        # What is critical has to be understood, and we understand no extension.
        if algorithm not in SUPPORTED or "crit" in header or not isinstance(claims, dict):
            raise _refusal()
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise _refusal()
        signed = token.rpartition(".")[0].encode()
        return cls(algorithm, header.get("kid"), claims, signed, parts["signature"])


@dataclass(frozen=True, slots=True)
class _Rules:
    """What a token's claims have to say, and what is read from them."""

    issuer: str
    audience: str
    tenant_claim: str
    scope_claim: str

    def read(self, claims: Mapping[str, Any], now_s: float) -> tuple[Key, float]:
        """Return the key and when it expires. Raises InvalidApiKey."""
        audiences = claims.get("aud")
        if claims.get("iss") != self.issuer or self.audience not in (
            audiences if isinstance(audiences, list) else [audiences]
        ):
            raise _refusal()
        expires_s, begun_s = _time(claims, "exp"), now_s + _LEEWAY_S
        # As what has to hold: NaN is JSON to Python, and no comparison with it holds.
        if not (now_s < expires_s and _time(claims, "nbf", 0) <= begun_s and _time(claims, "iat", 0) <= begun_s):
            raise _refusal()
        tenant = PREFIX + self._tenant(claims)
        return Key(tenant, tenant, self._scopes(claims)), expires_s

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        tenant = _claim(claims, self.tenant_claim)
        # Without spaces around it: two that look the same would be two.
        if not isinstance(tenant, str) or tenant != tenant.strip() or not tenant.isprintable():
            raise _refusal()
        if not 0 < len(tenant) <= _MAX_TENANT_CHARS:
            raise _refusal()
        return tenant

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[KeyScope]:
        """Return the known ones; a token without any is known, and may do nothing."""
        value = _claim(claims, self.scope_claim)
        given = value.split() if isinstance(value, str) else [] if value is None else value
        if not isinstance(given, list):
            raise _refusal()
        return frozenset(scope for scope in _SCOPES if scope in given)


class _Verified:
    """Tokens seen lately, by digest: one that comes with every request costs a hash."""

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
    # By the machine's proxy, except on loopback, which is all that plain http is for.
    direct = {f"https://{host}": httpx.AsyncHTTPTransport(verify=context) for host in _LOOPBACK}
    # What is not compressed cannot grow beyond its bound.
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    return httpx.AsyncClient(
        mounts={"http://": httpx.AsyncHTTPTransport(), **direct},
        headers=headers,
        follow_redirects=False,
        verify=context,
    )


def _machines_certificates() -> ssl.SSLContext:
    """Trust what the machine trusts, private authorities too; httpx's own list only on a machine that has none."""
    context = ssl.create_default_context()
    folder = ssl.get_default_verify_paths().capath
    # A folder of certificates is read on demand, and does not count before.
    if context.cert_store_stats()["x509_ca"] or (folder and any(Path(folder).iterdir())):
        return context
    return httpx.create_ssl_context(trust_env=False)


async def _get(client: httpx.AsyncClient, url: str, timeout_s: float) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError, or what httpx raises."""
    body = bytearray()
    try:
        # Over all of it: httpx limits each read, and one that sends a byte at a time would hold us for ever.
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
    """Tell whether nobody on the way to a URL can change what it answers."""
    try:
        parts = urlsplit(url)
        host, user, _ = parts.hostname, parts.username, parts.port
    except ValueError:
        return False
    if not host or user is not None or not url.isascii() or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim of this name or, if there is none, at this dotted path: `https://example.org/project` has
    dots too."""
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
