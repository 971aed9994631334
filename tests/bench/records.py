"""Builds records of requests, and responses as bytes of HTTP."""

from __future__ import annotations

from tokka.bench.record import Record

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def answered(due_s: float = 0, ttft_s: float = 0.5, tpot_s: float = 0.05, tokens: int = 64) -> Record:
    first_s = due_s + ttft_s
    events_s = [first_s + place * tpot_s for place in range(tokens)]
    return Record(
        tenant="all",
        due_s=due_s,
        sent_s=due_s,
        status=200,
        first_s=first_s,
        last_s=events_s[-1],
        ended_s=events_s[-1],
        tokens=tokens,
        finish="length",
        events_s=events_s,
    )


def refused(due_s: float, lasted_s: float) -> Record:
    return Record("all", due_s, due_s, 503, "server_overloaded", "full", 2.0, ended_s=due_s + lasted_s)


def chunked(*events: str) -> bytes:
    return b"".join(f"{len(event.encode()):x}\r\n{event}\r\n".encode() for event in events)
