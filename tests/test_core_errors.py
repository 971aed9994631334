"""Errors: each class gives a complete response in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.api.http_framing import MalformedHttp
from tokka.api.http_refusal import HeadersTooLarge, NoRoom
from tokka.errors import (
    MAX_RETRY_AFTER_S,
    ConfigurationError,
    ConnectionLimitReached,
    ContextLengthExceeded,
    Draining,
    EngineError,
    GenerationFailed,
    InternalError,
    InvalidApiKey,
    InvalidRequest,
    Maintenance,
    MethodNotAllowed,
    ModelStarting,
    NoChatTemplate,
    NoFleet,
    QuotaExceeded,
    RateLimited,
    ResponseInterrupted,
    ServerOverloaded,
    StartupError,
    TenantHeld,
    TokkaError,
    UnsupportedParameter,
)
from tokka.protocol.response_models import ErrorBody


def kinds(base: type[TokkaError] = TokkaError) -> Iterator[type[TokkaError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


ALL = sorted(set(kinds()), key=lambda kind: kind.__name__)
# Errors of the HTTP protocol itself, imported so that `kinds` finds them.
assert {HeadersTooLarge, MalformedHttp, NoRoom} <= set(ALL)


def made(kind: type[TokkaError]) -> TokkaError:
    if kind is MethodNotAllowed:
        return MethodNotAllowed("what went wrong", "GET")
    if kind is Maintenance:
        return Maintenance("2026-12-01T06:00:00Z", "2026-12-01T08:00:00Z", "new GPUs", 60)
    if kind is RateLimited:
        return RateLimited("what went wrong", of="tokens", retry_after_s=1.5)
    if kind is TenantHeld:
        return TenantHeld("what went wrong", left_s=20)
    if kind is ContextLengthExceeded:
        return ContextLengthExceeded("what went wrong", param="messages")
    if kind in (NoChatTemplate, ResponseInterrupted, GenerationFailed, ConnectionLimitReached, NoFleet):
        return kind()
    if kind is NoRoom:
        return NoRoom("full")
    return HeadersTooLarge(65536) if kind is HeadersTooLarge else kind("what went wrong")


@pytest.mark.parametrize("kind", ALL)
def test_an_error_has_status_type_and_code(kind: type[TokkaError]) -> None:
    error = made(kind)
    assert 400 <= error.status < 600
    assert isinstance(error.code, str)
    # In OpenAI's API, the type of a 429 names the exceeded limit.
    by_status = {429: "insufficient_quota" if kind is QuotaExceeded else "tokens"}
    assert error.type == by_status.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")


@pytest.mark.parametrize("kind", ALL)
def test_the_body_is_openai_s(kind: type[TokkaError]) -> None:
    error = made(kind)
    ErrorBody.model_validate(error.body())
    openai = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    assert error.body()["error"] == openai | ({"details": error.details} if error.details else {})


@pytest.mark.parametrize("kind", ALL)
def test_header_names_are_lower_case_as_asgi_wants_them(kind: type[TokkaError]) -> None:
    assert all(name.islower() for name in made(kind).headers())


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (InvalidApiKey, 401, "invalid_api_key"),
        (InvalidRequest, 400, "invalid_value"),
        (UnsupportedParameter, 400, "unsupported_parameter"),
        (ServerOverloaded, 503, "server_overloaded"),
        (ModelStarting, 503, "model_starting"),
        (Draining, 503, "draining"),
        (EngineError, 500, "engine_error"),
        (InternalError, 500, "internal_error"),
    ],
)
def test_error_codes_match_the_contract(kind: type[TokkaError], status: int, code: str) -> None:
    assert (made(kind).status, made(kind).code) == (status, code)


@given(st.floats(0, 1e9))
def test_retry_after_stays_between_1_and_120_seconds(seconds: float) -> None:
    given_out = ServerOverloaded("full", retry_after_s=seconds).headers()["retry-after"]
    assert 1 <= int(given_out) <= MAX_RETRY_AFTER_S == 120


def test_without_a_time_there_is_no_retry_after() -> None:
    assert "retry-after" not in ServerOverloaded("full").headers()


@pytest.mark.parametrize(("should_retry", "header"), [(True, "true"), (False, "false")])
def test_should_retry_is_said_where_it_is_known(should_retry: bool, header: str) -> None:
    assert ServerOverloaded("full", should_retry=should_retry).headers()["x-should-retry"] == header


def test_should_retry_is_not_guessed() -> None:
    assert "x-should-retry" not in ServerOverloaded("full").headers()


def test_invalid_key_error_has_the_scheme_and_retry_headers() -> None:
    headers = InvalidApiKey("no", retry_after_s=3).headers()
    assert headers == {"retry-after": "3", "retry-after-ms": "3000", "www-authenticate": "Bearer"}


@pytest.mark.parametrize(("allow", "expected"), [("GET, POST", "GET, POST"), ("", None)])
def test_allowed_methods_are_listed_where_they_are_known(allow: str, expected: str | None) -> None:
    assert MethodNotAllowed("no", allow).headers().get("allow") == expected


def test_the_field_is_named() -> None:
    assert InvalidRequest("no", param="messages[2].content").body()["error"]["param"] == "messages[2].content"


def test_configuration_and_startup_errors_have_own_exit_codes() -> None:
    assert (ConfigurationError.exit_code, StartupError.exit_code) == (2, 3)
