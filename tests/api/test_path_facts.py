"""Facts about paths: denied by default, folders hold only what is below them."""

from __future__ import annotations

import pytest

from tokka.api.path_facts import facts_of


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/", "/docs", "/openapi.json", "/ui/1/page.js", "/docs-assets/x"]
)
def test_open_paths_need_no_key(path: str) -> None:
    assert facts_of(path).scope is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        "livez",
        "/livez/",
        "//livez",
        "/LIVEZ",
        "/ui",
        "ui/page.js",
        "xui/",
        "//ui/x",
        "/docs-assets",
        "/new",
        "/v1/models",
    ],
)
def test_other_paths_need_a_key(path: str) -> None:
    assert facts_of(path).scope == "inference"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"])
def test_paths_below_messages_are_anthropics(path: str) -> None:
    assert facts_of(path).speaks_anthropic
    assert facts_of(path).scope == "inference"


@pytest.mark.parametrize("path", ["/v1/messagesx", "/v1/models", "/v1/chat/completions", "/messages"])
def test_other_paths_are_not_anthropics(path: str) -> None:
    assert not facts_of(path).speaks_anthropic


@pytest.mark.parametrize(
    ("path", "scope"), [("/admin/keys", "admin"), ("/admin", "inference"), ("/metrics", "metrics")]
)
def test_paths_need_their_scope(path: str, scope: str) -> None:
    assert facts_of(path).scope == scope


@pytest.mark.parametrize(
    ("path", "is_counted", "is_generation"),
    [("/v1/completions", True, True), ("/tokenize", True, False), ("/v1/models", False, False)],
)
def test_requests_count_by_their_path(path: str, is_counted: bool, is_generation: bool) -> None:
    facts = facts_of(path)
    assert (facts.is_counted, facts.is_generation) == (is_counted, is_generation)
