"""Client faults against both compared servers: clients never read, send slowly, flood, leave, or come all at once."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
from tests.faults.marked import marked
from tests.wire import raw_completion

from benchmarks.faults.servers import GIVE_UP_S, NAME, Figures, Load, Server, after, serving

HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHos"
HALF_A_BODY = raw_completion({"model": NAME})[:-5]


def client_never_reads(kind: str) -> Figures:
    with serving(kind) as server, _never_reading(server) as raw:
        hit_s = time.monotonic()
        gone_s = after(lambda: not _is_connected(server, raw), GIVE_UP_S)
        return {
            "connection_cut_s": gone_s,
            "still_running": server.running(),
            "watched_s": round(time.monotonic() - hit_s),
        }


@contextmanager
def _never_reading(server: Server) -> Iterator[socket.socket]:
    """Yield a connection that requests a response larger than any buffer and reads nothing of it."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        fields = {"prompt": "x", "stream": True, "max_tokens": 8000, "n": 8, "logprobs": 5}
        raw.sendall(raw_completion({"model": NAME, "ignore_eos": True, **fields}))
        after(lambda: server.running() > 0, 10)
        yield raw


def _is_connected(server: Server, raw: socket.socket) -> bool:
    mine = raw.getsockname()
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return any(one.raddr and tuple(one.raddr) == mine for one in connections)


def slow_connections(kind: str) -> Figures:
    with serving(kind) as server, contextlib.ExitStack() as stack:
        before = server.connections()
        for sent, count in ((b"", 200), (HALF_A_HEAD, 50), (HALF_A_BODY, 50)):
            for _ in range(count):
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                raw.sendall(sent)
        served = server.serves()
        gone_s = after(lambda: server.connections() <= before + 1, GIVE_UP_S)
        return {"served_meanwhile": served, "all_closed_s": gone_s, "still_open": max(0, server.connections() - before)}


def huge_header(kind: str) -> Figures:
    with serving(kind) as server:
        try:
            status: Any = httpx.get(
                f"{server.url}/v1/models", headers={"x-huge": "x" * (32 << 20)}, timeout=30
            ).status_code
        except httpx.HTTPError as error:
            status = type(error).__name__
        return {"status": status}


def files_exhausted(kind: str) -> Figures:
    with serving(kind, open_files=300) as server:
        with contextlib.ExitStack() as flood:
            for _ in range(600):
                flood.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            began_s = time.monotonic()
            served = sum(server.serves() for _ in range(4))
            took_s = round(time.monotonic() - began_s, 1)
            health = server.status()
        return {"served_of_4": served, "took_s": took_s, "health": health, "serves_after_s": after(server.serves, 20)}


def clients_leave(kind: str) -> Figures:
    with serving(kind, "--max-num-seqs", "2") as server:
        queue = "tokka_requests_waiting" if kind == "tokka" else "vllm:num_requests_waiting"
        running = "vllm:num_requests_running"
        figures: Figures = {}
        for name, stream in (("stream", True), ("plain", False)):
            client = _asking(server, stream=stream)
            assert after(lambda: server.metric(running) == 1, 10) is not None, "it does not run"
            figures |= {f"{name}_s": _leaving_s(server, client, running)}
        with contextlib.closing(_asking(server)), contextlib.closing(_asking(server)):
            assert after(lambda: server.metric(running) == 2, 10) is not None, "they do not run"
            client = _asking(server)
            assert after(lambda: server.metric(queue) == 1, 10) is not None, "it does not wait"
            return {**figures, "queue_s": _leaving_s(server, client, queue)}


def _asking(server: Server, *, stream: bool = True) -> socket.socket:
    """Return a connection with a request that generates for more than a minute."""
    raw = socket.create_connection(("127.0.0.1", server.port))
    fields = {"prompt": "Once", "stream": stream, "max_tokens": 7000, "ignore_eos": True}
    raw.sendall(raw_completion({"model": NAME, **fields}))
    return raw


def _leaving_s(server: Server, client: socket.socket, gauge: str) -> float | None:
    client.close()
    return after(lambda: server.metric(gauge) == 0, GIVE_UP_S)


def marked_streams(kind: str) -> Figures:
    with serving(kind) as server:
        markers = [secrets.token_hex(4) for _ in range(64)]
        bodies: list[dict[str, Any]] = [
            {"prompt": marked(marker), "max_tokens": 24, "temperature": 0, "ignore_eos": True} for marker in markers
        ]
        shown = []
        # In the second pass every prefix is in the cache.
        for _ in range(2):
            load = Load(server, bodies)
            load.ends(time.monotonic(), GIVE_UP_S)
            shown += [(own, stream.content) for own, stream in zip(markers, load.streams, strict=True)]
        return {
            "answers": sum(bool(content) for _, content in shown),
            "own_marker": sum(own in content for own, content in shown),
            "foreign_marker": sum(any(one in content for one in markers if one != own) for own, content in shown),
        }


def stop_held_up(kind: str) -> Figures:
    """Return after how many seconds SIGTERM ends the server while a client reads nothing or has sent half a request."""
    figures: Figures = {}
    with serving(kind) as server, _never_reading(server):
        server.process.terminate()
        figures |= {"never_reads_s": server.exits_s(GIVE_UP_S)}
    for name, sent in (("half_a_head_s", HALF_A_HEAD), ("half_a_body_s", HALF_A_BODY)):
        with serving(kind) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(sent)
            assert server.serves(), "a later request is served, so this one has arrived"
            server.process.terminate()
            figures |= {name: server.exits_s(GIVE_UP_S)}
    return figures
