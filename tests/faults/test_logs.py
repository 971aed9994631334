"""An unread, full or closed log delays no request and no exit; the server counts the lost lines."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from tests.program import TOKKA, eventually, free_port
from tests.wire import metric

_F_SETPIPE_SZ = 1031
# Number of requests; their log lines fill the pipe of 4096 bytes many times over.
LINES = 400


@contextmanager
def serving(stdout: int | IO[bytes], *options: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    command = [str(TOKKA), "serve", "--engine", "fake", "--port", str(port), *options]
    with (
        subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        try:
            eventually(lambda: _ready(client), within_s=20)
            yield process, client
        finally:
            process.kill()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def ask_many(client: httpx.Client, count: int = LINES) -> None:
    slowest_s = 0.0
    for _ in range(count):
        began_s = time.monotonic()
        answer = client.post("/v1/completions", json={"model": "fake", "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 200
        slowest_s = max(slowest_s, time.monotonic() - began_s)
    assert slowest_s < 1


def assert_ends_well(process: subprocess.Popen[bytes]) -> None:
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - began_s < 4
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_pipe_that_nobody_reads_blocks_no_request_and_not_the_end() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, _F_SETPIPE_SZ, 4096)
    try:
        with serving(write) as (process, client):
            ask_many(client)
            assert client.get("/livez").status_code == 200
            assert_ends_well(process)
    finally:
        os.close(read)
        os.close(write)


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    with Path("/dev/full").open("wb") as full, serving(full) as (process, client):
        ask_many(client, 50)
        eventually(lambda: metric(client, "tokka_log_lines_dropped_total") >= 50, within_s=5)
        assert_ends_well(process)


def test_a_reader_that_is_gone_loses_lines_and_nothing_else() -> None:
    read, write = os.pipe()
    with serving(write) as (process, client):
        os.close(write)
        ask_many(client, 5)
        os.close(read)
        ask_many(client, 50)
        eventually(lambda: metric(client, "tokka_log_lines_dropped_total") >= 50, within_s=5)
        assert_ends_well(process)


def test_without_a_standard_output_the_server_serves() -> None:
    port = free_port()
    command = f'exec "{TOKKA}" serve --engine fake --port {port} >&-'
    with (
        subprocess.Popen(["sh", "-c", command], stderr=subprocess.PIPE) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        try:
            eventually(lambda: _ready(client), within_s=20)
            ask_many(client, 20)
            assert_ends_well(process)
        finally:
            process.kill()


def test_log_is_written_completely_when_the_server_ends() -> None:
    read, write = os.pipe()
    with serving(write, "--log-format", "json") as (process, client):
        os.close(write)
        ask_many(client, 20)
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    with os.fdopen(read) as lines:
        text = lines.read()
    assert text.count('"request_finished"') == 20
    assert '"event":"stopped"' in text


def test_log_is_written_completely_when_a_second_signal_arrives() -> None:
    read, write = os.pipe()
    slow = {"model": "fake", "prompt": "x", "max_tokens": 100, "stream": True}
    with serving(write, "--log-format", "json", "--engine-arg", "token_delay_s=0.3") as (process, client):
        os.close(write)
        with client.stream("POST", "/v1/completions", json=slow) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: client.get("/readyz").status_code == 503, within_s=5)
            for _ in range(20):
                assert client.post("/v1/completions", json=slow).status_code == 503
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 1
    with os.fdopen(read) as lines:
        text = lines.read()
    assert text.count('"status":503') == 20
    assert '"event":"draining"' in text


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_second_signal() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, _F_SETPIPE_SZ, 4096)
    slow = {"model": "fake", "prompt": "x", "max_tokens": 100, "stream": True}
    try:
        with (
            serving(write, "--engine-arg", "token_delay_s=0.3") as (process, client),
            client.stream("POST", "/v1/completions", json=slow) as answer,
        ):
            pieces = answer.iter_bytes()
            next(pieces)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: client.get("/readyz").status_code == 503, within_s=5)
            for _ in range(LINES):
                client.post("/v1/completions", json=slow)
            began_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 1
            assert time.monotonic() - began_s < 2
    finally:
        os.close(read)
        os.close(write)
