"""Keys and usage while the database fails: requests go on, no tokens are lost, and revoked keys stay refused."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import create_engine, text

from tests.faults.disks import small_disk
from tests.faults.keys import bearer, tokka
from tests.program import eventually, failing, running
from tests.store.databases import Postgres
from tokka.accounts.ledger import open_ledger
from tokka.store.rows import ReportQuery

ADMIN_KEY = "the-admin-key-of-the-test"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
DELAY = ("--engine-arg", "token_delay_s=0.01")
FAST = ("--engine", "fake", "--admin-key", ADMIN_KEY, "--metrics-open")


def status(client: httpx.Client, secret: str) -> int:
    return client.get("/v1/models", headers=bearer(secret)).status_code


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


@dataclass
class Books:
    """The usage that responses reported to clients."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    finished_s: list[float] = field(default_factory=list)

    def send(self, client: httpx.Client, tokens: int = 3) -> None:
        body = {"model": "fake", "prompt": "hello", "max_tokens": tokens}
        answer = client.post("/v1/completions", json=body, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        self.requests += 1
        self.prompt += usage["prompt_tokens"]
        self.completion += usage["completion_tokens"]
        self.finished_s.append(time.monotonic())

    @property
    def sums(self) -> tuple[int, int, int]:
        return self.requests, self.prompt, self.completion


def written(folder: Path | str) -> tuple[int, int, int]:
    """Return requests, prompt tokens and completion tokens of all keys, as the database has them."""
    url = folder if isinstance(folder, str) else None
    with contextlib.closing(open_ledger(url, Path(folder), 10.0)) as ledger:
        (row,) = ledger.report(ReportQuery(0, 2**40, (), 2))
    return row.requests, row.prompt_tokens, row.completion_tokens


def stored_keys(folder: Path) -> set[str]:
    with contextlib.closing(open_ledger(None, folder, 10.0)) as ledger:
        return {row.id for row in ledger.all_keys()}


# -- keys -------------------------------------------------------------------------------------------------------


def test_a_running_server_follows_the_command_line_within_two_seconds(tmp_path: Path) -> None:
    where = ("--state-dir", str(tmp_path))
    with running("--engine", "fake", *where) as program, program.client() as client:
        assert status(client, "anything") == 200
        first = tokka("keys", "create", "--name", "a", "--quiet", *where)
        # From the first key on, the server requires a key.
        eventually(lambda: status(client, "anything") == 401, within_s=2)
        assert status(client, first) == 200
        key_id = tokka("keys", "list", *where).splitlines()[1].split()[0]
        second = tokka("keys", "rotate", key_id, "--grace", "1h", "--quiet", *where)
        eventually(lambda: status(client, second) == 200, within_s=2)
        assert status(client, first) == 200
        tokka("keys", "revoke", key_id, *where)
        eventually(lambda: status(client, second) == 401, within_s=2)
        assert status(client, first) == 401
        # Revoking the last key does not open the server again.
        assert status(client, "anything") == 401
        assert first not in str(program.log)
        assert second not in str(program.log)


def test_stored_keys_count_beyond_loopback(tmp_path: Path) -> None:
    where = ("--engine", "fake", "--host", "0.0.0.0", "--state-dir", str(tmp_path))
    code, lines = failing(*where, "--port", "0")
    assert (code, len(lines)) == (2, 1)
    assert "--no-auth" in lines[0]
    secret = tokka("keys", "create", "--name", "a", "--quiet", "--state-dir", str(tmp_path))
    with running(*where) as program:
        url = program.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=bearer(secret)).status_code == 200


# -- kill and stop ----------------------------------------------------------------------------------------------


def test_a_kill_loses_no_key_and_one_second_of_usage_at_most(tmp_path: Path) -> None:
    books, keys = Books(), set()
    with running(*FAST, "--state-dir", str(tmp_path)) as program, program.client() as client:

        def load() -> None:
            with program.client() as own, contextlib.suppress(httpx.TransportError):
                while True:
                    books.send(own)

        thread = threading.Thread(target=load)
        thread.start()
        # Go on until a request is old enough to be in the database for certain.
        while not books.finished_s or time.monotonic() < books.finished_s[0] + 2:
            answer = client.post("/admin/keys", json={"name": "k"}, headers=ADMIN)
            assert answer.status_code == 201
            keys.add(answer.json()["id"])
        killed_s = time.monotonic()
        program.process.send_signal(signal.SIGKILL)
        program.process.wait(10)
        thread.join(20)
    assert keys
    assert keys <= stored_keys(tmp_path)
    safe = sum(finished < killed_s - 1 for finished in books.finished_s)
    assert safe > 0
    assert safe <= written(tmp_path)[0] <= books.requests + 1


def test_a_stop_loses_nothing_however_the_requests_ended(tmp_path: Path) -> None:
    slow = ("--engine-arg", "die_on=DIE", *DELAY)
    with running(*FAST, *slow, "--state-dir", str(tmp_path)) as program, program.client() as client:

        def ask(prompt: str, tokens: int, **more: Any) -> httpx.Response:
            body = {"model": "fake", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **more}
            return client.post("/v1/completions", json=body, headers=ADMIN)

        assert ask("plain", 5).json()["usage"]["completion_tokens"] == 5
        assert "[DONE]" in ask("streamed", 5, stream=True).text
        assert ask("timed out", 2000, timeout=0.2).json()["choices"][0]["stop_reason"] == "timeout"
        body = {"model": "fake", "prompt": "aborted", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=body, headers=ADMIN) as stream:
            next(stream.iter_lines())
        assert ask("x", -1).status_code == 400
        assert ask("DIE", 5).status_code == 500
        # The next request is in flight when the server gets SIGTERM, and completes.
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=20)
        with client.stream("POST", "/v1/completions", json=body | {"max_tokens": 30}, headers=ADMIN) as stream:
            lines_of = stream.iter_lines()
            next(lines_of)
            program.process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines_of)
        assert program.process.wait(30) == 0
    lines = [line for line in program.log if line["event"] == "request_finished" and "outcome" in line]
    assert {line["outcome"] for line in lines} == {"length", "timeout", "aborted", "invalid", "error"}
    assert written(tmp_path) == (
        len(lines),
        sum(line["prompt_tokens"] for line in lines),
        sum(line["completion_tokens"] for line in lines),
    )


# -- the database fails while the server runs -------------------------------------------------------------------


def locked(folder: Path) -> Callable[[], None]:
    other = sqlite3.connect(folder / "tokka.db", isolation_level=None, timeout=10, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")

    def end() -> None:
        other.execute("ROLLBACK")
        other.close()

    return end


def full(folder: Path) -> Callable[[], None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler.unlink


def deleted(folder: Path) -> Callable[[], None]:
    (folder / "tokka.db").unlink()
    return lambda: None


def garbled(folder: Path) -> Callable[[], None]:
    path = folder / "tokka.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(os.urandom(size))
    return lambda: None


def emptied(folder: Path) -> Callable[[], None]:
    os.truncate(folder / "tokka.db", 0)
    return lambda: None


@pytest.mark.parametrize("fault", [locked, full, deleted, garbled, emptied])
def test_requests_go_on_and_usage_is_complete_afterwards(fault: Callable[[Path], Callable[[], None]]) -> None:
    books = Books()
    lasts = fault in (locked, full)
    with small_disk("2m") as disk:
        folder = disk / "state"
        with running(*FAST, "--state-dir", str(folder)) as program, program.client() as client:
            made = client.post("/admin/keys", json={"name": "before"}, headers=ADMIN).json()
            books.send(client)
            eventually(lambda: metric(client, "tokka_usage_pending") == 0, within_s=10)
            end = fault(folder)
            for _ in range(5):
                books.send(client)
                assert client.get("/readyz").status_code == 200
            assert status(client, made["key"]) == 200
            if lasts:
                eventually(lambda: metric(client, "tokka_state_database_up") == 0, within_s=10)
                books.send(client)
                assert metric(client, "tokka_usage_pending") >= 1
                refused = client.post("/admin/keys", json={"name": "now"}, headers=ADMIN)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "state_unavailable")
                assert int(refused.headers["retry-after"]) >= 1
            else:
                program.wait_for("state_database_down", timeout_s=10)
            end()
            program.wait_for("state_database_up", timeout_s=10)
            assert metric(client, "tokka_state_database_up") == 1
            later = client.post("/admin/keys", json={"name": "later"}, headers=ADMIN)
            assert later.status_code == 201
            books.send(client)
            assert client.get("/admin/usage?group_by=tenant", headers=ADMIN).json()["data"][0]["requests"] == 7 + lasts
            assert program.stop() == 0
        assert written(folder) == books.sums
        assert stored_keys(folder) == {made["id"], later.json()["id"]}
        assert (folder / "tokka.db").stat().st_mode & 0o777 == 0o600
        # One log line per change, not per attempt.
        changes = [line["event"] for line in program.log if line["event"].startswith("state_database")]
        assert changes == ["state_database_down", "state_database_up"]
        assert [line for line in program.log if line.get("level") == "error"] == []


def test_a_folder_that_is_removed_is_made_again_with_all_keys(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    books = Books()
    with running(*FAST, "--state-dir", str(folder)) as program, program.client() as client:
        made = client.post("/admin/keys", json={"name": "before"}, headers=ADMIN).json()
        shutil.rmtree(folder)
        books.send(client)
        program.wait_for("state_database_up", timeout_s=10)
        assert program.stop() == 0
    assert stored_keys(folder) == {made["id"]}
    assert written(folder) == books.sums


def test_a_read_only_database_is_named_at_the_start(tmp_path: Path) -> None:
    with small_disk("2m") as disk:
        tokka("keys", "create", "--name", "a", "--state-dir", str(disk))
        remount = subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False)
        if remount.returncode:
            pytest.skip("cannot remount read-only here")
        code, lines = failing("--engine", "fake", "--port", "0", "--state-dir", str(disk))
        assert (code, len(lines)) == (2, 1)
        assert str(disk) in lines[0]
        assert "read-only" in lines[0]


def test_without_a_folder_to_write_to_it_serves_if_none_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    default = {"XDG_STATE_HOME": str(tmp_path / "file"), "TOKKA_STATE_DIR": ""}
    default["TOKKA_ADMIN_KEY"] = ADMIN_KEY
    with running("--engine", "fake", env=default) as program, program.client() as client:
        assert [line["event"] for line in program.log if line.get("level") == "warning"] == ["no_state_database"]
        client.headers.update(ADMIN)
        answer = client.post("/v1/completions", json={"model": "fake", "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 200
        assert client.post("/admin/keys", json={"name": "a"}).status_code == 503
        assert program.stop() == 0
    code, lines = failing("--engine", "fake", "--port", "0", "--state-dir", str(tmp_path / "file" / "x"))
    assert (code, len(lines)) == (2, 1)


def test_a_damaged_file_without_a_readable_key_is_not_served_over(tmp_path: Path) -> None:
    tokka("keys", "create", "--name", "a", "--state-dir", str(tmp_path))
    (tmp_path / "tokka.db").write_bytes(os.urandom(8192))
    for _ in range(2):
        code, lines = failing("--engine", "fake", "--port", "0", "--state-dir", str(tmp_path))
        assert (code, len(lines)) == (3, 1)
        assert "tokka.db.corrupt-" in lines[0]


# -- PostgreSQL -------------------------------------------------------------------------------------------------


def cut(postgres: Postgres, _: str) -> Callable[[], None]:
    postgres.stop()
    return postgres.start


def read_only(postgres: Postgres, url: str) -> Callable[[], None]:
    """Make the database read-only, as after a failover; return a function that ends it."""
    name = url.rpartition("/")[2]

    def set_to(value: str) -> None:
        engine = create_engine(postgres.url("postgres").replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}"))
            # The setting applies only to new connections.
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )
        engine.dispose()

    set_to("on")
    return lambda: set_to("off")


@pytest.mark.parametrize("fault", [cut, read_only])
def test_postgresql_may_go_and_come_back(
    postgres: Postgres, fault: Callable[[Postgres, str], Callable[[], None]]
) -> None:
    url = postgres.new_database()
    books = Books()
    with running(*FAST, "--database-url", url) as program, program.client() as client:
        made = client.post("/admin/keys", json={"name": "before"}, headers=ADMIN).json()
        books.send(client)
        end = fault(postgres, url)
        try:
            books.send(client)
            eventually(lambda: metric(client, "tokka_state_database_up") == 0, within_s=10)
            books.send(client)
            assert status(client, made["key"]) == 200
            assert client.get("/readyz").status_code == 200
            assert client.post("/admin/keys", json={"name": "now"}, headers=ADMIN).status_code == 503
            assert client.get("/admin/keys", headers=ADMIN).json()["data"][0]["id"] == made["id"]
        finally:
            end()
        eventually(lambda: metric(client, "tokka_state_database_up") == 1, within_s=10)
        books.send(client)
        assert program.stop() == 0
        assert "the-password" not in str(program.log)
    assert written(url) == books.sums


def test_front_ends_of_one_postgresql_share_keys_and_usage(postgres: Postgres) -> None:
    url = postgres.new_database()
    where = ("--database-url", url)
    with (
        running(*FAST, *where) as first,
        running(*FAST, *where) as second,
        first.client() as one,
        second.client() as two,
    ):
        quota = {"name": "k", "limits": {"daily_tokens": 10}}
        made = one.post("/admin/keys", json=quota, headers=ADMIN).json()
        eventually(lambda: status(two, made["key"]) == 200, within_s=2)

        def ask(client: httpx.Client) -> int:
            body = {"model": "fake", "prompt": "12345", "max_tokens": 3}
            return client.post("/v1/completions", json=body, headers=bearer(made["key"])).status_code

        assert ask(one) == 200
        # Two tokens of the quota are left, and the other server sees that too.
        eventually(lambda: ask(two) == 429, within_s=3)
        assert two.delete(f"/admin/keys/{made['id']}", headers=ADMIN).status_code == 200
        assert status(two, made["key"]) == 401
        eventually(lambda: status(one, made["key"]) == 401, within_s=2)


def test_a_postgresql_that_cannot_be_reached_at_the_start_is_one_line() -> None:
    url = "postgresql://tokka:a-secret@127.0.0.1:1/x"
    code, lines = failing("--engine", "fake", "--port", "0", "--database-wait", "0", "--database-url", url)
    # Exit code 1: the database may come up later, so a service manager tries again.
    assert (code, len(lines)) == (1, 1)
    assert "a-secret" not in lines[0]
    assert "refused" in lines[0]


@contextmanager
def frozen(postgres: Postgres) -> Iterator[None]:
    assert postgres.process
    server = psutil.Process(postgres.process.pid)
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_hanging_postgresql_delays_neither_requests_nor_shutdown(postgres: Postgres) -> None:
    books = Books()
    with running(*FAST, "--database-url", postgres.new_database()) as program, program.client() as client:
        books.send(client)
        with frozen(postgres):
            books.send(client)
            assert client.get("/readyz").status_code == 200
            assert program.stop() == 0
        assert [line["event"] for line in program.log if line.get("level") == "error"] == ["usage_lost"]
