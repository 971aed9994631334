"""The encoding of server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
# A comment: clients skip it, and proxies see that the stream is alive. It has no empty line, because some readers
# (openai-go before 3.43) take that for the end of an event and parse an event without data.
KEEP_ALIVE = b": keep-alive\n"
# Proxies must not buffer or cache a stream.
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

# Readers built on `str.splitlines`, like httpx's `iter_lines`, take these for line ends. In JSON they occur only in
# strings. Searching for the last byte is five times faster than for the character.
_LINE_ENDS = (
    (0xA8, "\u2028".encode(), b"\\u2028"),
    (0xA9, "\u2029".encode(), b"\\u2029"),
    (0x85, "\u0085".encode(), b"\\u0085"),
)


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    return named_event(name, orjson.dumps(data)) if name else json_event(orjson.dumps(data))


def named_event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), safe_json(data))


def json_event(data: bytes) -> bytes:
    return b"data: %b\n\n" % safe_json(data)


def parts_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the JSON of each named event in whole events. Comments and `DONE` are left out."""
    for one in data.split(b"\n\n"):
        name, _, text = one.partition(b"\ndata: ")
        if text:
            yield name.removeprefix(b"event: "), text


def safe_json(data: bytes) -> bytes:
    """Return the JSON without characters that some readers take for line ends."""
    if data.isascii():
        return data
    for last_byte, character, escape in _LINE_ENDS:
        if last_byte in data:
            data = data.replace(character, escape)
    return data
