"""The record of a request, read from the bytes of its response: times, tokens, outcome and error."""

from __future__ import annotations

import pytest

from tests.bench.records import HEAD, chunked
from tokka.bench.connection import Answer
from tokka.bench.record import Record


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_answer_is_read_however_it_was_cut(size: int) -> None:
    role = 'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    text = 'data: {"choices":[{"delta":{"content":"ä"},"finish_reason":null}]}\n\n'
    end = 'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
    sent = HEAD + chunked(role, text, text, end, usage, "data: [DONE]\n\n") + b"0\r\n\r\n"
    pieces = [(100.0 + at, sent[at : at + size]) for at in range(0, len(sent), size)]
    record = Record("all", due_s=0)
    record.read(Answer(pieces, ended_s=pieces[-1][0], is_whole=True), began_s=100.0)
    assert (record.status, record.outcome, record.tokens, record.prompt_tokens) == (200, "completed", 4, 9)
    assert len(record.events_s) == 2
    assert record.first_s is not None
    assert record.last_s is not None
    # An event has arrived when its last byte has.
    assert record.first_s >= (len(HEAD + chunked(role, text)) - 3) // size * size
    assert record.last_s <= len(HEAD + chunked(role, text, text, end))


def test_chunks_may_leave_out_the_finish_reason() -> None:
    # As vLLM's Rust front end sends them.
    text = 'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    end = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
    sent = HEAD + chunked(text, text, end, usage, "data: [DONE]\n\n") + b"0\r\n\r\n"
    record = Record("all", due_s=0)
    record.read(Answer([(1.0, sent)], ended_s=1.0, is_whole=True), began_s=0)
    assert (record.code, record.outcome, record.tokens, record.finish) == (None, "completed", 2, "stop")
    assert len(record.events_s) == 2


def test_refusal_keeps_its_code_and_when_to_come_again() -> None:
    body = b'{"error":{"code":"server_overloaded"}}'
    head = f"HTTP/1.1 503 X\r\nRetry-After: 3\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    record = Record("all", due_s=0, sent_s=0)
    record.read(Answer([(1.0, head + body)], ended_s=1.0, is_whole=True), began_s=0)
    assert (record.outcome, record.status, record.code, record.retry_after_s) == (
        "refused",
        503,
        "server_overloaded",
        3.0,
    )


def test_answer_that_broke_off_has_failed_and_one_still_open_is_cut() -> None:
    piece = (1.0, HEAD + chunked('data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'))
    broken, still_open = Record("all", due_s=0), Record("all", due_s=0)
    broken.read(Answer([piece], ended_s=2.0), began_s=0)
    still_open.read(Answer([piece]), began_s=0)
    assert (broken.outcome, still_open.outcome) == ("failed", "cut")
    # Only `usage` gives the number of tokens.
    assert (still_open.tokens, len(still_open.events_s)) == (0, 1)


def test_error_in_a_stream_is_a_failure() -> None:
    sent = HEAD + chunked('data: {"error":{"code":"engine_died"}}\n\n') + b"0\r\n\r\n"
    record = Record("all", due_s=0)
    record.read(Answer([(1.0, sent)], ended_s=1.0, is_whole=True), began_s=0)
    assert (record.outcome, record.code) == ("failed", "engine_died")


@pytest.mark.parametrize(
    "delta",
    ['{"reasoning_content":"a"}', '{"reasoning":"a"}', '{"tool_calls":[{"index":0}]}', '{"content":"a"}'],
)
def test_whatever_carries_tokens_is_a_token_event(delta: str) -> None:
    sent = HEAD + chunked(f'data: {{"choices":[{{"delta":{delta},"finish_reason":null}}]}}\n\n')
    record = Record("all", due_s=0)
    record.read(Answer([(1.0, sent)]), began_s=0)
    assert record.events_s == [1.0]


@pytest.mark.parametrize("comment", [": keep-alive\n", ": keep-alive\n\n", ": a\n: b\n"])
def test_comment_before_an_event_hides_nothing(comment: str) -> None:
    sent = HEAD + chunked(f'{comment}data: {{"choices":[{{"delta":{{"content":"a"}},"finish_reason":null}}]}}\n\n')
    record = Record("all", due_s=0)
    record.read(Answer([(1.0, sent)]), began_s=0)
    assert record.events_s == [1.0]


@pytest.mark.parametrize(
    "body",
    [b"<html>", b'{"choices":[]}', b"[]", b'{"choices":[{"delta":1}]}'],
)
def test_malformed_answer_counts_as_failed(body: bytes) -> None:
    kinds = (b"text/event-stream", b"application/json")
    for kind, sent in zip(kinds, (b"data: {" + body + b"\n\n", body), strict=True):
        record = Record("all", due_s=0)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\n\r\n"
        record.read(Answer([(1.0, head + sent)], ended_s=1.0, is_whole=True), began_s=0)
        assert (record.outcome, record.code) == ("failed", "malformed")


def test_refusal_keeps_the_servers_code_and_message() -> None:
    for body, code, message in (
        (b'{"error":{"code":"invalid_value","message":"too long"}}', "invalid_value", "too long"),
        (b'{"error":{"code":404,"message":"none"}}', "404", "none"),
        (b"bad gateway", "502", "bad gateway"),
    ):
        record = Record("all", due_s=0)
        record.read(Answer([(1.0, b"HTTP/1.1 502 X\r\n\r\n" + body)], ended_s=1.0, is_whole=True), began_s=0)
        assert (record.outcome, record.code, record.message) == ("refused", code, message)
