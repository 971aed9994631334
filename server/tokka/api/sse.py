"""Server-sent events: the only place that knows their form."""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
# A comment: clients skip it, proxies see that the stream lives.
KEEP_ALIVE = b": keep-alive\n\n"
# No proxy may hold a stream back or keep it.
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + json_event(orjson.dumps(data))


def json_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
