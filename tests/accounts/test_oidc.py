"""Tokens of an issuer: the tenant of each valid token, one error for all others, and keys that follow the issuer's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import hmac
import ipaddress
import itertools
import json
import math
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.accounts.issuers import (
    AUDIENCE,
    DISCOVERY,
    ISSUER,
    KEYS,
    KID_OF,
    NOW,
    Issuer,
    answer,
    claims,
    jwk,
    private,
    signed,
    silent,
)
from tokka.accounts import oidc
from tokka.accounts.keys import REFUSAL
from tokka.accounts.oidc import MAX_TOKEN_CHARS, Pace, TokenVerifier
from tokka.core import Key
from tokka.errors import ConfigurationError, InvalidApiKey, IssuerUnavailable


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer("rsa")
    yield issuer
    issuer.close()


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: Any, content: Any, algorithm: str = "RS256", by: str = "rsa") -> str:
    """Return a correctly signed token with this header and content."""
    text = f"{part(header)}.{part(content)}"
    return f"{text}.{part(jwt.get_algorithm_by_name(algorithm).sign(text.encode(), private(by)))}"


def altered(token: str, position: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[position] = change(parts[position])
    return ".".join(parts)


def verifier_of(*keys: dict[str, Any], **given: Any) -> TokenVerifier:
    options: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "tenant_claim": "sub",
        "scope_claim": "scope",
        "clock": lambda: NOW,
    }
    verifier = TokenVerifier(**{**options, **given})
    if keys:
        verifier.use({"keys": list(keys)})
    return verifier


ALL = [jwk(kid) for kid in ("rsa", "p256", "p384", "p521", "ed25519")]
VERIFIER = verifier_of(*ALL)


def refused(token: str, verifier: TokenVerifier = VERIFIER) -> None:
    with pytest.raises(InvalidApiKey) as refusal:
        verifier.verify(token)
    assert refusal.value.body() == InvalidApiKey(REFUSAL).body()
    assert refusal.value.headers() == InvalidApiKey(REFUSAL).headers()


def each(field: str, *values: Any) -> list[dict[str, Any]]:
    return [{field: value} for value in values]


@pytest.mark.parametrize("algorithm", KID_OF)
def test_a_token_is_accepted_by_each_algorithm(algorithm: str) -> None:
    assert VERIFIER.verify(signed(algorithm=algorithm)) == Key("oidc:alice", "oidc:alice", frozenset({"inference"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["account", AUDIENCE]},
        {"exp": NOW + 0.5},
        {"iat": NOW + 30, "nbf": NOW + 30},
        {"iat": None},
        {"sub": "x" * 128},
        {"sub": "käyttäjä 1"},
        {"groups": ["g" * 40] * 90},
    ],
)
def test_these_claims_are_good(changes: dict[str, Any]) -> None:
    assert VERIFIER.verify(signed(claims(**changes))).scopes == {"inference"}


@pytest.mark.parametrize(
    "changes",
    [
        *each("iss", None, ISSUER + "/", "https://evil.example", [ISSUER], 5),
        *each("aud", None, "tokk", "tokka2", "", [], ["account"], {AUDIENCE: 1}, [[AUDIENCE]], 5),
        *each("exp", None, NOW, NOW - 1, 0, -1, str(NOW + 300), True, math.nan, [NOW + 300], {}),
        *each("nbf", NOW + 31, str(NOW), math.nan, True, []),
        *each("iat", NOW + 31, str(NOW), math.nan, True, []),
        *each("sub", None, "", " ", "x" * 129, 7, ["alice"], {"a": 1}, "a\nb", "a\x00", "alice "),
        *each("scope", 7, True, {"inference": True}),
    ],
    ids=str,
)
def test_these_claims_are_refused_although_rightly_signed(changes: dict[str, Any]) -> None:
    refused(forged({"alg": "RS256", "kid": "rsa"}, claims(**changes)))


@pytest.mark.parametrize("content", [[], "text", 5, None, b"", b"\xff", b"{", b"[" * 2000, b"9" * 5000], ids=repr)
def test_content_that_is_no_object_is_refused(content: Any) -> None:
    refused(forged({"alg": "RS256", "kid": "rsa"}, content))


def test_a_lone_surrogate_is_no_tenant() -> None:
    refused(forged({"alg": "RS256", "kid": "rsa"}, claims(sub="\ud800")))


@pytest.mark.parametrize(
    "header",
    [
        *each("kid", None, 5, [], "", "RSA", "unknown", "p256", "ed25519", ["rsa"], {"a": 1}),
        *each("alg", None, 5, [], "", "none", "None", "HS256", "RS1", "rs256", "PS256", "ES256"),
        *each("crit", ["exp"], [], ["b64"], "exp", None, 5),
        *each("typ", "logout+jwt", "dpop+jwt", "", 5, None, []),
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
        {"b64": True, "crit": ["b64"]},
    ],
    ids=str,
)
def test_these_headers_are_refused_although_rightly_signed(header: dict[str, Any]) -> None:
    fields = {"alg": "RS256", "kid": "rsa", **header}
    refused(forged(fields, claims()))


@pytest.mark.parametrize("header", [[], "text", 5, None, b"", b"\xff", b"{", b"[" * 2000, {}], ids=repr)
def test_a_header_that_is_no_object_is_refused(header: Any) -> None:
    refused(forged(header, claims()))


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_these_types_are_accepted(kind: str) -> None:
    assert VERIFIER.verify(signed(typ=kind)).tenant == "oidc:alice"


@pytest.mark.parametrize("signature", ["", "x", part(b"\x00" * 256)])
def test_none_is_no_algorithm(signature: str) -> None:
    for name in ("none", "None", "NONE", "", "HS256"):
        token = f"{part({'alg': name, 'kid': 'rsa'})}.{part(claims())}.{signature}"
        refused(token)
        # It does not wait for keys either.
        refused(token, verifier_of())


@pytest.mark.parametrize("kid", ["rsa", "p256", "ed25519"])
def test_a_public_key_is_no_shared_secret(kid: str) -> None:
    public = private(kid).public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secrets = [
        public.public_bytes(serialization.Encoding.PEM, info),
        public.public_bytes(serialization.Encoding.DER, info),
        json.dumps(jwk(kid)).encode(),
        jwk(kid).get("n", jwk(kid).get("x", "")).encode(),
        b"",
    ]
    for name, digest in (("HS256", hashlib.sha256), ("HS384", hashlib.sha384), ("HS512", hashlib.sha512)):
        for secret in secrets:
            text = f"{part({'alg': name, 'kid': kid})}.{part(claims())}"
            refused(f"{text}.{part(hmac.digest(secret, text.encode(), digest))}")


@pytest.mark.parametrize("field", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_in_the_header_is_never_used(field: str) -> None:
    value: Any = jwk("other-rsa") if field == "jwk" else "http://127.0.0.1:9/keys"
    for kid in ("rsa", "other-rsa", None):
        refused(signed(by="other-rsa", kid=kid, **{field: value}))
    # The field does not invalidate a good token either.
    assert VERIFIER.verify(signed(**{field: value})).tenant == "oidc:alice"


@pytest.mark.parametrize(("algorithm", "by"), [("RS256", "other-rsa"), ("PS512", "other-rsa")])
def test_another_key_under_a_known_name_is_refused(algorithm: str, by: str) -> None:
    refused(signed(algorithm=algorithm, by=by, kid="rsa"))


@pytest.mark.parametrize("algorithm", KID_OF)
def test_a_tampered_token_is_refused(algorithm: str) -> None:
    token = signed(algorithm=algorithm)
    richer = part(claims(scope="inference metrics admin"))
    refused(altered(token, 1, lambda _: richer))
    refused(altered(token, 0, lambda _: part({"alg": algorithm, "kid": KID_OF[algorithm], "x": 1})))
    refused(altered(token, 2, lambda text: ("A" if text[0] != "A" else "B") + text[1:]))
    refused(altered(token, 2, lambda text: text[:-4]))
    refused(altered(token, 2, lambda _: ""))
    refused(altered(token, 2, lambda text: text + "AAAA"))
    refused(altered(token, 2, lambda _: part(b"\x00" * 64)))


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d.e", "tk-" + "x" * 43, "ä.b.c", "\udcff.a.b", "\x00", " "),
        *("x" * MAX_TOKEN_CHARS, "x" * (MAX_TOKEN_CHARS + 1), "." * MAX_TOKEN_CHARS, "a." * 4000, "x" * 10_000_000),
    ],
    ids=lambda token: ascii(token[:8]) + str(len(token)),
)
def test_verifier_refuses_a_malformed_token(token: str) -> None:
    refused(token)
    # It does not wait for keys either.
    refused(token, verifier_of())


def test_whitespace_and_parts_around_a_token_are_refused() -> None:
    token = signed()
    for text in (f" {token}", f"{token} ", f"{token}\n", f"{token}.", f".{token}", f"{token}.x", f"{token}.{token}"):
        refused(text)


def test_a_token_may_have_8_kib() -> None:
    room = MAX_TOKEN_CHARS - len(signed(claims(pad="")))
    longest = signed(claims(pad="x" * (room * 3 // 4)))
    assert MAX_TOKEN_CHARS - 8 < len(longest) <= MAX_TOKEN_CHARS
    assert VERIFIER.verify(longest).tenant == "oidc:alice"
    refused(signed(claims(pad="x" * (room * 3 // 4 + 8))))


@settings(max_examples=1000)
@given(st.data())
def test_a_mutated_token_is_the_same_or_refused(data: st.DataObject) -> None:
    token = tokens()[data.draw(st.sampled_from(list(KID_OF)))]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(token)))
        piece = data.draw(st.one_of(st.text("._-=Aa09", max_size=3), st.text(max_size=2), st.just(token[at:])))
        token = token[:at] + piece + token[at + data.draw(st.integers(0, 2)) :]
    if token.replace("=", "") in {text.replace("=", "") for text in tokens().values()}:
        return
    refused(token)


@cache
def tokens() -> dict[str, str]:
    return {name: signed(algorithm=name) for name in KID_OF}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(name=st.sampled_from(["alg", "kid", "typ", "b64", "x5c"]), value=_JSON)
def test_whatever_a_header_holds_is_refused_or_harmless(name: str, value: Any) -> None:
    with contextlib.suppress(InvalidApiKey):
        assert VERIFIER.verify(forged({"alg": "RS256", "kid": "rsa", name: value}, claims())).tenant == "oidc:alice"


@settings(max_examples=300)
@given(name=st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "scope"]), value=_JSON)
def test_whatever_a_claim_holds_is_refused_or_gives_known_scopes(name: str, value: Any) -> None:
    with contextlib.suppress(InvalidApiKey):
        key = VERIFIER.verify(forged({"alg": "RS256", "kid": "rsa"}, {**claims(), name: value}))
        assert key.scopes <= {"inference", "metrics", "admin"}
        assert key.tenant.startswith("oidc:")


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("inference", {"inference"}),
        ("openid  admin metrics offline_access", {"admin", "metrics"}),
        (["inference", "billing", 5, None, ["admin"]], {"inference"}),
        ("inference,admin Admin xadmin", set()),
        ("", set()),
        (None, set()),
    ],
)
def test_only_known_scopes_are_taken(scope: Any, expected: set[str]) -> None:
    assert VERIFIER.verify(signed(claims(scope=scope))).scopes == expected


def test_claims_are_found_at_a_dotted_path_or_under_a_name_with_dots() -> None:
    content = claims(realm_access={"project": "lumi"}, **{"https://example.org/scopes": ["metrics"]})
    verifier = verifier_of(*ALL, tenant_claim="realm_access.project", scope_claim="https://example.org/scopes")
    assert verifier.verify(signed(content)) == Key("oidc:lumi", "oidc:lumi", frozenset({"metrics"}))
    for other in ("lumi", ["project"], {}, {"project": {"a": "b"}}, None):
        refused(signed(claims(realm_access=other)), verifier)


@pytest.mark.parametrize("name", ["key-1", "admin-1", "anonymous"])
def test_a_claim_cannot_name_a_tenant_of_another_kind(name: str) -> None:
    key = VERIFIER.verify(signed(claims(sub=name)))
    assert (key.id, key.tenant) == (f"oidc:{name}", f"oidc:{name}")


def test_a_single_key_needs_no_name_and_one_of_several_does() -> None:
    nameless = signed(kid=None)
    assert verifier_of(jwk("rsa")).verify(nameless).tenant == "oidc:alice"
    assert verifier_of(jwk("rsa", kid=None)).verify(nameless).tenant == "oidc:alice"
    refused(nameless)
    refused(nameless, verifier_of(jwk("rsa", kid=None), jwk("p256")))
    refused(nameless, verifier_of(jwk("other-rsa")))
    # A key id in the token must be the key's own.
    refused(signed(), verifier_of(jwk("rsa", kid=None)))


def test_a_key_is_used_only_as_it_says() -> None:
    assert verifier_of(jwk("rsa", alg="PS384")).verify(signed(algorithm="PS384")).tenant == "oidc:alice"
    refused(signed(algorithm="PS256"), verifier_of(jwk("rsa", alg="PS384")))
    refused(signed(), verifier_of(jwk("rsa", alg="RS512")))
    assert verifier_of(jwk("rsa", use=None)).verify(signed()).tenant == "oidc:alice"


def test_verifier_keeps_keys_of_different_kinds_with_one_id() -> None:
    verifier = verifier_of(jwk("p256", kid="same"), jwk("rsa", kid="same"))
    assert verifier.verify(signed(kid="same")).tenant == "oidc:alice"
    assert verifier.verify(signed(algorithm="ES256", kid="same")).tenant == "oidc:alice"


def test_a_published_private_key_is_read_as_the_public_one() -> None:
    for kid, algorithm in (("rsa", "RS256"), ("p256", "ES256"), ("ed25519", "EdDSA")):
        assert verifier_of(jwk(kid, secret=True)).verify(signed(algorithm=algorithm)).tenant == "oidc:alice"


USELESS: list[Any] = [
    *(jwk("rsa", use="enc"), jwk("rsa", alg="RSA-OAEP"), jwk("rsa", alg="HS256"), jwk("rsa", alg="none")),
    *(jwk("rsa", kid=5), jwk("rsa", n=None), jwk("rsa", n=5), jwk("rsa", n="!"), jwk("rsa", e="AA"), jwk("rsa", n="")),
    *({**jwk("rsa"), "key_ops": ["encrypt"]}, {**jwk("rsa"), "key_ops": 5}),
    *(jwk("p256", crv="P-384"), jwk("p256", crv="secp256k1"), jwk("p256", x=None), jwk("p256", x="AAAA")),
    *(jwk("p256", x=jwk("p256")["y"]), jwk("ed25519", crv="X25519"), jwk("ed25519", crv=None), jwk("ed25519", x="AA")),
    *({"kty": "oct", "k": part(b"secret" * 8), "kid": "rsa"}, {"kty": "oct", "k": "x", "alg": "HS256"}),
    *({}, {"kty": []}, {"kty": "RSA", "crv": {}}, [], "text", None, 5),
]


@pytest.mark.parametrize("useless", USELESS, ids=lambda key: str(key)[:60])
def test_a_key_of_no_use_is_left_out_and_costs_the_others_nothing(useless: Any) -> None:
    with pytest.raises(ValueError, match="no key"):
        verifier_of().use({"keys": [useless]})
    # The useless key does not count as one of several either.
    assert verifier_of(useless, jwk("rsa")).verify(signed(kid=None)).tenant == "oidc:alice"


@pytest.mark.parametrize("bits", [1024, 8200])
def test_rsa_keys_that_are_broken_or_slow_are_left_out(bits: int) -> None:
    number = part(((1 << bits) - 1).to_bytes(bits // 8))
    with pytest.raises(ValueError, match="no key"):
        verifier_of().use({"keys": [jwk("rsa", n=number)]})


@pytest.mark.parametrize("document", [None, [], {}, {"keys": None}, {"keys": {}}, {"keys": []}, {"keys": [{}] * 101}])
def test_a_key_set_of_no_use_is_refused_and_the_last_good_one_stays(document: Any) -> None:
    verifier = verifier_of(jwk("rsa"))
    with pytest.raises(ValueError, match="key set"):
        verifier.use(document)
    assert verifier.verify(signed()).tenant == "oidc:alice"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list of the signatures that were checked, in order."""
    seen: list[bytes] = []
    check = jwt.algorithms.RSAAlgorithm.verify

    def counted(self: Any, text: bytes, key: Any, signature: bytes) -> bool:
        seen.append(signature)
        return check(self, text, key, signature)

    monkeypatch.setattr(jwt.algorithms.RSAAlgorithm, "verify", counted)
    return seen


def test_a_known_token_is_checked_again_after_a_minute(checks: list[bytes]) -> None:
    now = [float(NOW)]
    verifier, token = verifier_of(jwk("rsa"), clock=lambda: now[0]), signed()
    for now[0] in (NOW, NOW + 1, NOW + 59):
        verifier.verify(token)
    assert len(checks) == 1
    now[0] = NOW + 60
    verifier.verify(token)
    assert len(checks) == 2


def test_a_known_token_expires_on_time() -> None:
    now = [float(NOW)]
    verifier, token = verifier_of(jwk("rsa"), clock=lambda: now[0]), signed(claims(exp=NOW + 10))
    for now[0] in (NOW, NOW + 9.9):
        verifier.verify(token)
    now[0] = NOW + 10
    refused(token, verifier)


def test_a_known_token_goes_with_its_key() -> None:
    verifier, token = verifier_of(jwk("rsa"), jwk("p256")), signed()
    verifier.verify(token)
    verifier.use({"keys": [jwk("p256")]})
    refused(token, verifier)


def test_the_same_keys_again_cost_nothing(checks: list[bytes]) -> None:
    verifier, token = verifier_of(jwk("rsa"), jwk("p256")), signed()
    verifier.verify(token)
    verifier.use({"keys": [jwk("p256"), jwk("rsa")]})
    verifier.verify(token)
    assert len(checks) == 1


def test_known_tokens_are_bounded_and_the_least_used_goes_first(
    checks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_MAX_VERIFIED", 2)
    first, second, third = (signed(claims(jti=name)) for name in "abc")
    verifier = verifier_of(jwk("rsa"))
    for token in (first, second, first, third, first):
        verifier.verify(token)
    assert len(checks) == 3
    verifier.verify(second)
    assert len(checks) == 4


def test_refused_tokens_are_not_kept(checks: list[bytes]) -> None:
    verifier, token = verifier_of(jwk("rsa")), signed(by="other-rsa", kid="rsa")
    for _ in range(3):
        refused(token, verifier)
    assert len(checks) == 3


@pytest.mark.parametrize(
    "issuer",
    [
        *("", "login.example.org", "ftp://login.example.org", "https://", "https:///realms", "//login.example.org"),
        *("http://login.example.org", "http://192.168.1.5:8080", "http://localhost.example.org", "http://0.0.0.0"),
        *("https://user:secret@login.example.org", "https://login.example.org?x=1", "https://login.example.org/#x"),
        *("https://login.example.org:port", "https://[::1", "https://login.example.org/a b", "https://ä.example.org"),
    ],
)
def test_an_issuer_has_to_be_a_url_that_nobody_can_meddle_with(issuer: str) -> None:
    with pytest.raises(ConfigurationError, match="--oidc-issuer"):
        verifier_of(issuer=issuer)


@pytest.mark.parametrize(
    "issuer", ["http://localhost:8080/realms/x", "http://127.0.0.1:1", "http://[::1]:8080", ISSUER]
)
def test_https_and_loopback_are_good(issuer: str) -> None:
    verifier_of(issuer=issuer)


@pytest.mark.parametrize("audience", [None, ""])
def test_an_issuer_needs_an_audience(audience: str | None) -> None:
    with pytest.raises(ConfigurationError, match="--oidc-audience"):
        verifier_of(audience=audience)


FAST = Pace(every_s=3600, soonest_s=0.05, first_retry_s=0.02, longest_retry_s=0.05)


@contextlib.asynccontextmanager
async def following(issuer: Issuer, pace: Pace = FAST) -> AsyncIterator[TokenVerifier]:
    verifier = verifier_of(issuer=issuer.url, clock=time.time, pace=pace)
    running = asyncio.create_task(verifier.run())
    try:
        yield verifier
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        # Other threads and processes change the fact, so there is no event to wait for.
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def is_accepted(verifier: TokenVerifier, token: str) -> bool:
    try:
        return bool(verifier.verify(token))
    except (InvalidApiKey, IssuerUnavailable):
        return False


def unavailable(verifier: TokenVerifier, token: str) -> IssuerUnavailable:
    with pytest.raises(IssuerUnavailable) as error:
        verifier.verify(token)
    return error.value


async def test_keys_are_loaded_from_the_issuer(issuer: Issuer) -> None:
    with capture_logs() as logs:
        async with following(issuer) as verifier:
            await until(lambda: bool(logs))
            assert is_accepted(verifier, issuer.token())
    assert [(line["event"], line["count"]) for line in logs] == [("oidc_keys_loaded", 1)]
    assert issuer.asked == [DISCOVERY, KEYS]


async def test_keys_are_looked_at_every_now_and_then(issuer: Issuer) -> None:
    with capture_logs() as logs:
        async with following(issuer, Pace(every_s=0.02)) as verifier:
            await until(lambda: issuer.asked.count(KEYS) > 3)
            issuer.keys = [jwk("other-rsa"), jwk("rsa")]
            await until(lambda: is_accepted(verifier, issuer.token("other-rsa")))
    # One line for each change, none for a fetch of the same keys.
    assert [(line["event"], line["count"]) for line in logs] == [("oidc_keys_loaded", 1), ("oidc_keys_loaded", 2)]


async def test_rotation_is_noticed_by_the_first_token_of_the_new_key(issuer: Issuer) -> None:
    async with following(issuer) as verifier:
        old, new = issuer.token(), issuer.token("other-rsa")
        await until(lambda: is_accepted(verifier, old))
        issuer.keys = [jwk("other-rsa")]
        assert is_accepted(verifier, old)
        refused(new, verifier)
        await until(lambda: is_accepted(verifier, new))
        refused(old, verifier)


async def test_rotation_of_a_nameless_key_is_noticed_too(issuer: Issuer) -> None:
    issuer.keys = [jwk("rsa", kid=None)]
    # Wait for the keys first: an earlier token would cause a second fetch.
    with capture_logs() as logs:
        async with following(issuer) as verifier:
            await until(lambda: bool(logs))
            nameless = signed(jwt.decode(issuer.token(), options={"verify_signature": False}), by="other-rsa", kid=None)
            issuer.keys = [jwk("other-rsa", kid=None)]
            refused(nameless, verifier)
            await until(lambda: is_accepted(verifier, nameless))


async def test_unknown_keys_do_not_make_us_ask_often(issuer: Issuer) -> None:
    async with following(issuer, Pace(soonest_s=0.2)) as verifier:
        await until(lambda: is_accepted(verifier, issuer.token()))
        while issuer.asked.count(KEYS) < 4:
            refused(issuer.token("other-rsa"), verifier)
            await asyncio.sleep(0.001)
    assert min(gaps(issuer, KEYS)) > 0.19


def gaps(issuer: Issuer, path: str) -> list[float]:
    times = [at for asked, at in zip(issuer.asked, issuer.asked_s, strict=True) if asked == path]
    return [after - before for before, after in itertools.pairwise(times)]


async def test_verifier_answers_503_when_the_issuer_is_down_at_the_start(issuer: Issuer) -> None:
    issuer.stop()
    with capture_logs() as logs:
        async with following(issuer) as verifier:
            # Before the first fetch has failed, and after it.
            assert unavailable(verifier, issuer.token()).status == 503
            await until(lambda: bool(logs))
            assert unavailable(verifier, issuer.token()).headers()["retry-after"] == "1"
            # These tokens are refused without any key of the issuer.
            for bad in ("nonsense", "a.b.c", issuer.token(exp=5), issuer.token(aud="x"), issuer.token(iss="x")):
                refused(bad, verifier)
            issuer.answers[DISCOVERY] = answer(503, b"")
            issuer.start()
            await until(lambda: len(issuer.asked) > 3)
            issuer.answers.clear()
            await until(lambda: is_accepted(verifier, issuer.token()))
    assert [line["event"] for line in logs] == ["oidc_issuer_down", "oidc_keys_loaded"]
    assert logs[0]["has_keys"] is False


async def test_an_issuer_that_goes_down_takes_no_known_key_along(issuer: Issuer) -> None:
    with capture_logs() as logs:
        async with following(issuer) as verifier:
            known, unknown = issuer.token(), issuer.token("other-rsa")
            await until(lambda: is_accepted(verifier, known))
            issuer.stop()
            refused(unknown, verifier)
            await until(lambda: len(logs) == 2)
            assert is_accepted(verifier, known)
            assert is_accepted(verifier, issuer.token(jti="new"))
            assert "Retry in 1 s" in unavailable(verifier, unknown).message
            # The key id is known, so the token is refused without the issuer.
            refused(signed(claims(iss=issuer.url), by="other-rsa", kid="rsa"), verifier)
            issuer.keys = [jwk("rsa"), jwk("other-rsa")]
            issuer.start()
            await until(lambda: is_accepted(verifier, unknown))
    assert [line["event"] for line in logs] == ["oidc_keys_loaded", "oidc_issuer_down", "oidc_keys_loaded"]
    assert logs[1]["has_keys"] is True


async def test_an_issuer_that_is_back_with_the_same_keys_is_said_to_be_back(issuer: Issuer) -> None:
    with capture_logs() as logs:
        async with following(issuer, Pace(every_s=0.02, first_retry_s=0.02)):
            await until(lambda: len(logs) == 1)
            issuer.answers[KEYS] = answer(500, b"")
            await until(lambda: len(logs) == 2)
            del issuer.answers[KEYS]
            await until(lambda: len(logs) == 3)
    assert [line["event"] for line in logs] == ["oidc_keys_loaded", "oidc_issuer_down", "oidc_keys_loaded"]


async def test_retries_become_rarer(issuer: Issuer) -> None:
    issuer.answers[DISCOVERY] = answer(503, b"")
    async with following(issuer, Pace(first_retry_s=0.05, longest_retry_s=0.4)):
        await until(lambda: len(issuer.asked) == 6)
    for gap, at_least in zip(gaps(issuer, DISCOVERY), (0.05, 0.1, 0.2, 0.4, 0.4), strict=True):
        assert gap > at_least - 0.01


async def test_a_token_makes_a_late_retry_come_sooner(issuer: Issuer) -> None:
    issuer.answers[DISCOVERY] = answer(503, b"")
    async with following(issuer, Pace(soonest_s=0.05, first_retry_s=3600)) as verifier:
        await until(lambda: len(issuer.asked) == 1)
        issuer.answers.clear()
        await until(lambda: is_accepted(verifier, issuer.token()))


def trickle(issuer: Issuer) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not issuer.ending.wait(0.02):
            request.wfile.write(b" ")

    return send


@pytest.mark.parametrize("behaviour", [trickle, silent])
@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
async def test_a_slow_issuer_holds_nobody_up(
    issuer: Issuer, path: str, behaviour: Callable[[Issuer], Callable[[BaseHTTPRequestHandler], None]]
) -> None:
    issuer.answers[path] = behaviour(issuer)
    with capture_logs() as logs:
        async with following(issuer, Pace(timeout_s=1)) as verifier:
            await until(lambda: path in issuer.asked)
            began_s = time.monotonic()
            unavailable(verifier, issuer.token())
            assert time.monotonic() - began_s < 0.5
            await until(lambda: bool(logs))
    assert logs[0]["reason"].endswith(f"{path} did not answer within 1 s")


@pytest.mark.parametrize(
    ("path", "reply", "reason"),
    [
        (DISCOVERY, answer(404, b"{}"), "answered 404"),
        (KEYS, answer(500, b"{}"), "answered 500"),
        (KEYS, answer(302, b"", location=KEYS + "2"), "answered 302"),
        (DISCOVERY, answer(301, b"", location=KEYS), "answered 301"),
        (KEYS, answer(200, b" " * ((1 << 20) + 1)), "larger than 1048576 bytes"),
        (DISCOVERY, answer(200, b"<html>"), "is not JSON"),
        (KEYS, answer(200, b"[" * 100_000), "is not JSON"),
        (KEYS, answer(200, b"\x1f\x8b" + b"x" * 50, **{"content-encoding": "gzip"}), "is not JSON"),
        (KEYS, answer(200, b"[]"), "is not a JSON object"),
        (KEYS, answer(200, b'{"keys": []}'), "no key"),
        (KEYS, answer(200, b'{"keys": 5}'), "not a list"),
        (KEYS, answer(200, b"{}", **{"content-length": "50"}), ""),
        (DISCOVERY, answer(200, b'{"issuer": "https://evil.example", "jwks_uri": "https://x"}'), "another issuer"),
        (DISCOVERY, answer(200, b"{}"), "another issuer"),
        (DISCOVERY, lambda request: request.wfile.write(b"nonsense\r\n\r\n"), ""),
        (DISCOVERY, lambda request: request.connection.close(), ""),
    ],
)
async def test_an_answer_of_no_use_is_said_and_harms_nothing(
    issuer: Issuer, path: str, reply: Callable[[BaseHTTPRequestHandler], None], reason: str
) -> None:
    with capture_logs() as logs:
        async with following(issuer, Pace(every_s=0.02, first_retry_s=0.02)) as verifier:
            await until(lambda: len(logs) == 1)
            issuer.answers[path] = reply
            await until(lambda: len(logs) == 2)
            assert reason in logs[1]["reason"]
            assert is_accepted(verifier, issuer.token())
            issuer.answers.clear()
            await until(lambda: len(logs) == 3)


@pytest.mark.parametrize(
    "jwks_uri", ["http://login.example.org/keys", "file:///etc/passwd", "", None, 5, ["https://x"], "https://a:b@x/"]
)
async def test_keys_are_fetched_from_safe_places_only(issuer: Issuer, jwks_uri: Any) -> None:
    issuer.discovery = {"jwks_uri": jwks_uri}
    with capture_logs() as logs:
        async with following(issuer):
            await until(lambda: bool(logs))
    assert "no jwks_uri that is https" in logs[0]["reason"]
    assert KEYS not in issuer.asked


async def test_no_proxy_comes_between_us_and_loopback(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with following(issuer) as verifier:
        await until(lambda: is_accepted(verifier, issuer.token()))


async def test_held_request_sees_keys_fetched_after_it_came(issuer: Issuer) -> None:
    async with following(issuer) as verifier:
        await until(lambda: is_accepted(verifier, issuer.token()))
        fetching, going_on = threading.Event(), threading.Event()

        def old_keys(request: BaseHTTPRequestHandler) -> None:
            body = json.dumps({"keys": [jwk("rsa")]}).encode()
            fetching.set()
            going_on.wait(20)
            answer(200, body)(request)

        issuer.answers[KEYS] = old_keys
        refused(issuer.token("p256", algorithm="ES256"), verifier)
        await until(fetching.is_set)
        # The running fetch has read the old keys.
        held = asyncio.create_task(verifier.renewed())
        await asyncio.sleep(0)
        del issuer.answers[KEYS]
        issuer.keys = [jwk("other-rsa")]
        going_on.set()
        await asyncio.wait_for(held, 20)
        assert is_accepted(verifier, issuer.token("other-rsa"))


async def test_held_request_is_released_when_the_issuer_fails(issuer: Issuer) -> None:
    async with following(issuer, Pace(timeout_s=0.3)) as verifier:
        await until(lambda: is_accepted(verifier, issuer.token()))
        issuer.answers[KEYS] = silent(issuer)
        await asyncio.wait_for(verifier.renewed(), 20)
        unavailable(verifier, issuer.token("other-rsa"))


async def test_held_request_gets_503_when_nobody_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "_HOLD_S", 0.01)
    with pytest.raises(IssuerUnavailable):
        await verifier_of(jwk("rsa")).renewed()


def certificate_of(folder: Path) -> tuple[Path, Path]:
    """Return the certificate of a private authority, and one for 127.0.0.1 with its private key."""
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("authority", "127.0.0.1")]
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: x509.Name, kid: str) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(names[0], name, private(kid).public_key(), x509.random_serial_number())
        return builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))

    authority = certificate(names[0], "rsa").add_extension(x509.BasicConstraints(True, None), critical=True)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server = certificate(names[1], "other-rsa").add_extension(address, critical=False)
    paths = folder / "authority.pem", folder / "server.pem"
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for path, builder in zip(paths, (authority, server), strict=True):
        path.write_bytes(builder.sign(private("rsa"), hashes.SHA256()).public_bytes(pem))
    paths[1].write_bytes(paths[1].read_bytes() + private("other-rsa").private_bytes(pem, *form))
    return paths


async def test_private_authority_of_the_machine_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, server = certificate_of(tmp_path)
    # Stands for the machine's certificate store.
    monkeypatch.setattr(
        ssl.SSLContext, "set_default_verify_paths", lambda context: context.load_verify_locations(authority)
    )
    issuer = Issuer("rsa", certificate=server)
    try:
        async with following(issuer) as verifier:
            await until(lambda: is_accepted(verifier, issuer.token()))
    finally:
        issuer.close()


def test_machine_without_certificates_gets_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert oidc._machines_certificates().cert_store_stats()["x509_ca"] > 50
