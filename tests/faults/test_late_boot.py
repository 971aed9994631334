"""Starts while the machine boots: the exit code tells a service manager whether another start can succeed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patches import patched
from tests.program import TOKKA, failing, free_port, running
from tests.store.databases import Postgres

FAKE = ("--engine", "fake")


@contextmanager
def waiting_for(url: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start a server while its database is down; yield its process and its log once it waits."""
    command = [str(TOKKA), "serve", *FAKE, "--port", "0", "--database-url", url, "--log-format", "json", *options]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            log = []
            for line in process.stdout:
                log.append(line)
                if "waiting_for_database" in line:
                    break
            yield process, log
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_start_waits_for_the_database(postgres: Postgres) -> None:
    url = postgres.new_database()
    postgres.stop()
    try:
        with waiting_for(url) as (process, log):
            assert process.stdout is not None
            assert '"at_most_s":60.0' in log[-1]
            # The port opens only afterwards: the server does not know its keys yet.
            assert not any("listening" in line for line in log)
            postgres.start()
            assert any('"event":"ready"' in line for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait(20) == 0
    finally:
        if postgres.process is None:
            postgres.start()


def test_sigterm_ends_the_wait_for_the_database() -> None:
    with waiting_for(f"postgresql://tokka:secret-word@127.0.0.1:{free_port()}/tokka") as (process, log):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        log.append(process.stdout.read())
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
    assert not any("secret-word" in line for line in log)


def test_database_that_does_not_come_ends_with_1() -> None:
    url = f"postgresql://tokka:secret-word@127.0.0.1:{free_port()}/tokka"
    code, lines = failing(*FAKE, "--port", "0", "--database-url", url, "--database-wait", "0")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("tokka: cannot use the database ")
    assert "secret-word" not in lines[0]


def test_wrong_database_password_ends_with_2_at_once(postgres: Postgres) -> None:
    url = postgres.new_database().replace("the-password", "another-password")
    began = time.monotonic()
    code, lines = failing(*FAKE, "--port", "0", "--database-url", url)
    assert (code, len(lines)) == (2, 1)
    assert time.monotonic() - began < 30
    assert "another-password" not in lines[0]


def test_two_servers_of_one_port_leave_one() -> None:
    with running(*FAKE) as program:
        code, lines = failing(*FAKE, "--port", program.url.rpartition(":")[2])
        assert (code, len(lines)) == (1, 1)
        assert "address already in use" in lines[0]


def test_port_that_nobody_may_have_ends_with_2() -> None:
    if os.geteuid() != 0:
        code, lines = failing(*FAKE, "--port", "1")
    else:
        command = ["setpriv", "--bounding-set=-net_bind_service", str(TOKKA), "serve", *FAKE, "--port", "1"]
        with tempfile.TemporaryDirectory() as state:
            env = {**os.environ, "TOKKA_STATE_DIR": state}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        code, lines = done.returncode, done.stderr.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert "permission denied" in lines[0]


def test_missing_model_folder_ends_before_the_port_opens(tmp_path: Path) -> None:
    # The port is taken: if the server opened it first, the error would name the port.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        began = time.monotonic()
        code, lines = failing(str(tmp_path / "mount" / "poro"), "--port", str(taken.getsockname()[1]))
        assert time.monotonic() - began < 10
    assert (code, len(lines)) == (3, 1)
    assert "does not exist" in lines[0]


@pytest.mark.parametrize("option", ["--tool-call-parser", "--reasoning-parser"])
def test_unknown_parser_is_reported_before_any_import(tmp_path: Path, option: str) -> None:
    env = patched(tmp_path, dict.fromkeys(("vllm", "torch", "fastapi"), "raise RuntimeError('imported')"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, lines = failing(option, "hermess", "--port", str(taken.getsockname()[1]), env=env)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"tokka: {option} hermess: ")


def test_missing_keys_are_reported_before_the_port_opens(tmp_path: Path) -> None:
    env = patched(tmp_path, {"tokka.cli.serve": "def open_for_connections(*_): raise RuntimeError('opened')"})
    code, lines = failing(*FAKE, "--host", "0.0.0.0", "--port", "0", env=env)
    assert (code, len(lines)) == (2, 1)
    assert "--no-auth" in lines[0]
