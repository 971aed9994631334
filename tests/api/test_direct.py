"""Direct requests: the headers and peers that show a proxy or a page of another site."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.api.direct import Sign, indirect_sign, names_this_machine

LOCAL_CLIENT = {"host": "127.0.0.1:8000", "user-agent": "curl/8", "accept": "*/*", "content-type": "application/json"}
ORIGINS = ("https://app.example",)


def found(
    headers: dict[str, str] | None = None, *, client: Any = ("127.0.0.1", 40000), version: str = "1.1", more: Any = ()
) -> Sign | None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in {**LOCAL_CLIENT, **(headers or {})}.items()]
    return indirect_sign({"headers": raw, "client": client, "http_version": version}, more)


def sign(*args: Any, **fields: Any) -> str | None:
    shown = found(*args, **fields)
    return shown.text if shown else None


@pytest.mark.parametrize(
    "name",
    [
        *("forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix"),
        *("x-real-ip", "x-client-ip", "true-client-ip", "x-cluster-client-ip", "x-proxyuser-ip", "client-ip"),
        *("cf-connecting-ip", "cf-ray", "cdn-loop", "fly-client-ip", "fly-request-id", "fastly-client-ip"),
        *("x-original-forwarded-for", "x-original-uri", "x-original-host", "x-rewrite-url", "x-host", "x-scheme"),
        *("x-envoy-external-address", "x-appengine-user-ip", "x-azure-clientip", "akamai-origin-hop", "x-varnish"),
        *("tailscale-user-login", "x-vercel-forwarded-for", "cloudfront-viewer-address", "wl-proxy-client-ip"),
        *("forwarded-for", "x-forwarded", "x-forward-for", "x-ssl-client-verify", "x-nginx-proxy"),
    ],
)
def test_a_proxys_header_is_a_sign(name: str) -> None:
    assert sign({name: "203.0.113.7"}) == f"the header `{name}` shows a proxy"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"connection": "keep-alive"},
        {"connection": "close"},
        {"authorization": "Bearer none", "x-request-id": "1", "traceparent": "00-0-0-00", "idempotency-key": "k"},
        {"x-stainless-lang": "python", "x-stainless-os": "Linux", "openai-organization": "o", "referer": "http://x/"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
        {"origin": "http://[::1]:3000"},
        {"host": "tokka:8000", "origin": "http://tokka:8000"},
        {"sec-fetch-site": "none"},
        {"x-title": "cross-site"},
    ],
)
def test_a_local_client_gives_no_sign(headers: dict[str, str]) -> None:
    assert sign(headers) is None


@pytest.mark.parametrize("headers", [{}, {"connection": "keep-alive"}])
def test_http_1_0_by_itself_is_no_sign(headers: dict[str, str]) -> None:
    assert sign(headers, version="1.0") is None


@pytest.mark.parametrize("value", ["close", "Close", "TE, close"])
def test_http_1_0_that_says_close_is_a_sign(value: str) -> None:
    assert "proxy_pass" in str(sign({"connection": value}, version="1.0"))


@pytest.mark.parametrize("client", [("10.0.0.5", 1), ("203.0.113.7", 1), ("2001:db8::1", 1), ("::ffff:10.0.0.5", 1)])
def test_a_peer_on_another_machine_is_a_sign(client: tuple[str, int]) -> None:
    assert sign(client=client) == f"the peer {client[0]} is another machine"


@pytest.mark.parametrize("client", [None, ("127.0.0.1", 1), ("127.8.8.8", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
def test_a_peer_on_this_machine_is_no_sign(client: tuple[str, int] | None) -> None:
    assert sign(client=client) is None


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "file://", "chrome-extension://abc", "http://localhost.evil.example"),
        *(
            "https://127.0.0.1.evil.example",
            "http://10.0.0.5:8000",
            "ftp://localhost",
            "localhost",
            "http://",
            "http://wiki",
        ),
    ],
)
def test_a_page_of_another_site_is_a_sign(origin: str) -> None:
    assert sign({"origin": origin}) == f"`Origin: {origin}` is a page of another site"


def test_a_page_behind_a_proxy_is_of_another_site() -> None:
    # The proxy replaces Host with its own name for the server. The browser's Origin stays.
    assert "another site" in str(sign({"origin": "https://llm.example", "sec-fetch-site": "same-origin"}))


def test_a_cross_site_request_is_a_sign_without_origin() -> None:
    assert "Sec-Fetch-Site" in str(sign({"sec-fetch-site": "cross-site"}))


@pytest.mark.parametrize(
    ("headers", "is_page"),
    [
        ({"origin": "https://evil.example"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"via": "1.1 proxy"}, False),
        ({"host": "evil.example"}, False),
    ],
)
def test_evidence_distinguishes_a_page_from_a_proxy(headers: dict[str, str], is_page: bool) -> None:
    shown = found(headers)
    assert shown
    assert shown.is_page == is_page


@pytest.mark.parametrize("more", [ORIGINS, ("*",)])
def test_an_allowed_origin_may_call_from_its_site(more: tuple[str, ...]) -> None:
    assert sign({"origin": "https://app.example", "sec-fetch-site": "cross-site"}, more=more) is None


def test_an_allowed_origin_does_not_excuse_a_proxy() -> None:
    assert "proxy" in str(sign({"origin": "https://app.example", "x-forwarded-for": "203.0.113.7"}, more=ORIGINS))
    assert "another site" in str(sign({"origin": "https://other.example"}, more=ORIGINS))


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST.", "tokka.localhost:80", "127.0.0.1", "127.0.0.1:80", "127.8.8.8"),
        *("[::1]", "[::1]:8000", "0.0.0.0:8000", "[::]:8000", "tokka", "tokka:8000", "", "x"),
    ],
)
def test_a_local_host_names_this_machine(host: str) -> None:
    assert names_this_machine(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "10.evil.example", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("203.0.113.7", "10.0.0.5:8000", "[2001:db8::1]:8000", "127.1", "1.2", "[evil.example]", "a.b"),
        *("localhost.localdomain.", "127.0.0.1, evil.example", "evil.example.localhost.com"),
    ],
)
def test_another_host_does_not_name_this_machine(host: str) -> None:
    assert not names_this_machine(host)


def test_every_host_of_a_head_is_looked_at() -> None:
    raw = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert indirect_sign({"headers": raw, "client": None, "http_version": "1.1"})


def test_a_sign_shows_little_of_a_long_header() -> None:
    assert len(str(sign({"host": "a.b" * 5000}))) < 200
