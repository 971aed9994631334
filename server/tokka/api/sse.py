"""Server-sent events: the only place that knows their form."""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
# A comment: clients skip it, proxies see that the stream lives. Without an empty line, which some readers take for the
# end of an event, and parse an event without data (openai-go before 3.43).
KEEP_ALIVE = b": keep-alive\n"
# No proxy may hold a stream back or keep it.
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

# Line ends to readers built on `str.splitlines`, as httpx's `iter_lines` is. In JSON they can only be part of a
# string. A single byte, the last one, is found five times faster than the character.
_LINE_ENDS = (
    (0xA8, "\u2028".encode(), b"\\u2028"),
    (0xA9, "\u2029".encode(), b"\\u2029"),
    (0x85, "\u0085".encode(), b"\\u0085"),
)


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + json_event(orjson.dumps(data))


def json_event(data: bytes) -> bytes:
    if not data.isascii():
        data = _escape_line_ends(data)
    return b"data: " + data + b"\n\n"


def _escape_line_ends(data: bytes) -> bytes:
    for last_byte, character, escape in _LINE_ENDS:
        if last_byte in data:
            data = data.replace(character, escape)
    return data
