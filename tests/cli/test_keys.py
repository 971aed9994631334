"""`tokka keys` and `tokka usage`: secrets that scripts can read, and one line for each error."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect
from typer.testing import CliRunner

from tests.cli.keys import tokka
from tests.program import TOKKA
from tests.store.databases import Postgres
from tests.store.rows import added, key, write
from tokka.accounts.credential import digest_of
from tokka.cli import app
from tokka.store.rows import UsageRow
from tokka.store.sqlite import SqliteDatabase

SECRET = re.compile(r"tk-[A-Za-z0-9_-]{43}")


def listed(folder: Path) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(tokka(folder, "keys", "list", "--json").stdout)
    return keys


def test_a_key_is_made_with_all_that_was_said_of_it(tmp_path: Path) -> None:
    options = ["--rpm", "1", "--tpm", "2", "--max-running", "3", "--max-completion-tokens", "4"]
    options += ["--daily-tokens", "5", "--monthly-tokens", "6", "--models", "a,b", "--expires", "2099-12-31"]
    tokka(tmp_path, "keys", "create", "--name", "alice", "--tenant", "lab", "--scope", "inference,admin", *options)
    (made,) = listed(tmp_path)
    assert (made["name"], made["tenant"]) == ("alice", "lab")
    assert made["scopes"] == ["admin", "inference"]
    assert made["models"] == ["a", "b"]
    assert made["expires_at"] == 4102358400
    assert list(made["limits"].values()) == [1, 2, 3, 4, 5, 6]
    assert made["status"] == "active"


def test_the_secret_is_the_last_line_and_shown_this_once(tmp_path: Path) -> None:
    *_, secret = tokka(tmp_path, "keys", "create", "--name", "a").stdout.splitlines()
    assert SECRET.fullmatch(secret)
    assert SECRET.fullmatch(tokka(tmp_path, "keys", "create", "--name", "b", "-q").stdout.strip())
    issued = json.loads(tokka(tmp_path, "keys", "create", "--name", "c", "--json").stdout)
    assert SECRET.fullmatch(issued["key"])
    table = tokka(tmp_path, "keys", "list").stdout
    assert secret not in table
    assert secret[:8] in table
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in files
    assert digest_of(secret).hex().encode() in files


def test_the_database_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    tokka(folder, "keys", "create", "--name", "a")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "tokka.db").stat().st_mode) == 0o600


def test_an_expiry_may_be_said_as_a_distance(tmp_path: Path) -> None:
    tokka(tmp_path, "keys", "create", "--name", "a", "--expires", "12h")
    assert abs(listed(tmp_path)[0]["expires_at"] - time.time() - 12 * 3600) < 60


def test_a_rotation_gives_a_new_secret_and_keeps_the_rest(tmp_path: Path) -> None:
    tokka(tmp_path, "keys", "create", "--name", "a", "--rpm", "7")
    (before,) = listed(tmp_path)
    secret = tokka(tmp_path, "keys", "rotate", before["id"], "--grace", "2h", "-q").stdout.strip()
    (after,) = listed(tmp_path)
    assert after["prefix"] == secret[:8] != before["prefix"]
    assert abs(after["previous_until"] - time.time() - 2 * 3600) < 60
    assert {**after, "prefix": "", "previous_until": 0} == {**before, "prefix": "", "previous_until": 0}


def test_a_revoked_key_stays_in_the_list_and_cannot_be_rotated(tmp_path: Path) -> None:
    tokka(tmp_path, "keys", "create", "--name", "a")
    key_id = listed(tmp_path)[0]["id"]
    for _ in range(2):
        assert key_id in tokka(tmp_path, "keys", "revoke", key_id).stdout
    assert listed(tmp_path)[0]["status"] == "revoked"
    assert "revoked" in tokka(tmp_path, "keys", "rotate", key_id, code=2).stderr


CREATE = ("keys", "create", "--name", "a")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*CREATE, "--rpm", "0"), "--rpm"),
        ((*CREATE, "--daily-tokens", "-5"), "--daily-tokens"),
        ((*CREATE, "--scope", "all"), "--scope"),
        ((*CREATE, "--scope", ""), "--scope"),
        ((*CREATE, "--models", "a,,b"), "--models"),
        ((*CREATE, "--tenant", " "), "--tenant"),
        ((*CREATE, "--expires", "2020-01-01"), "--expires"),
        ((*CREATE, "--expires", "2099-02-30"), "--expires"),
        ((*CREATE, "--expires", "soon"), "--expires"),
        (("keys", "create", "--name", ""), "--name"),
        (("keys", "rotate", "key_0", "--grace", "31d"), "--grace"),
        (("keys", "rotate", "key_0", "--grace", "x"), "--grace"),
        (("usage", "--by", "color"), "--by"),
        (("usage", "--since", "x"), "--since"),
        (("usage", "--until", "2026-13-01"), "until"),
        (("usage", "--since", "1h", "--until", "2h"), "since"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = tokka(tmp_path, *arguments, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("tokka: ")
    assert said in line
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_unknown_key_is_one_line_that_names_it(tmp_path: Path, command: str) -> None:
    tokka(tmp_path, *CREATE)
    (line,) = tokka(tmp_path, "keys", command, "key_0", code=2).stderr.splitlines()
    assert "key_0" in line


READERS = [
    *(("usage",), ("keys", "list"), ("keys", "list", "--json"), ("downtime", "list")),
    *(("keys", "revoke", "key_0"), ("keys", "rotate", "key_0"), ("downtime", "remove", "down_0")),
]


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_reading_command_makes_no_database(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "mistyped", tmp_path / "empty"):
        result = tokka(folder, *arguments, code=2)
        (line,) = result.stderr.splitlines()
        assert f"no Tokka database at {folder / 'tokka.db'}" in line
        assert result.stdout == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_reading_command_makes_no_tables(postgres: Postgres, arguments: tuple[str, ...]) -> None:
    url = postgres.new_database()
    result = CliRunner().invoke(app, [*arguments, "--database-url", url])
    assert result.exit_code == 2
    assert f"no Tokka database at 127.0.0.1/{url.rpartition('/')[2]}" in result.stderr
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_unreadable_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    (line,) = tokka(tmp_path, "keys", "list", code=2).stderr.splitlines()
    assert "Permission denied" in line


def test_a_database_that_cannot_be_used_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (line,) = tokka(tmp_path / "file" / "x", "keys", "list", code=2).stderr.splitlines()
    assert str(tmp_path) in line
    (tmp_path / "tokka.db").write_bytes(b"x" * 5000)
    for _ in range(2):
        (*_, line) = tokka(tmp_path, "keys", "list", code=2).stderr.splitlines()
        assert "tokka.db.corrupt-" in line


def test_the_settings_of_the_server_name_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The command ignores settings that only affect serving.
    monkeypatch.setenv("TOKKA_HOST", "0.0.0.0")
    (tmp_path / "tokka.yaml").write_text(f"state_dir: {tmp_path / 'file'}\n")
    runner = CliRunner()
    assert runner.invoke(app, [*CREATE, "--config", str(tmp_path / "tokka.yaml")]).exit_code == 0
    assert (tmp_path / "file" / "tokka.db").exists()
    monkeypatch.setenv("TOKKA_STATE_DIR", str(tmp_path / "environment"))
    assert runner.invoke(app, [*CREATE, "--config", str(tmp_path / "tokka.yaml")]).exit_code == 0
    assert (tmp_path / "environment" / "tokka.db").exists()
    assert len(listed(tmp_path / "file")) == 1


def test_keys_in_postgresql(postgres: Postgres) -> None:
    where = ["--database-url", postgres.new_database()]
    runner = CliRunner()
    assert SECRET.search(runner.invoke(app, [*CREATE, *where]).stdout)
    assert " a " in runner.invoke(app, ["keys", "list", *where]).stdout
    wrong = runner.invoke(app, ["keys", "list", "--database-url", "postgresql://u:a-secret@127.0.0.1:1/x"])
    assert wrong.exit_code == 2
    assert "a-secret" not in wrong.output


@pytest.fixture
def used(tmp_path: Path) -> Path:
    database = SqliteDatabase(tmp_path, 1.0)
    database.open(None)
    added(database, key())
    hour = int(time.time()) // 3600 * 3600
    write(database, 1, UsageRow(hour, "k", "=t,1", "m", 2, 10, 4, 5), UsageRow(hour - 40 * 86400, "old", "t", "m", 1))
    database.close()
    return tmp_path


def test_usage_as_a_table_json_and_csv(used: Path) -> None:
    by = ("--by", "key,tenant,model")
    header, line = tokka(used, "usage", *by).stdout.splitlines()
    assert header.split() == [
        *("tenant", "key_id", "model", "requests"),
        *("prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens"),
    ]
    assert line.split() == ["=t,1", "k", "m", "2", "10", "4", "5", "15"]
    (entry,) = json.loads(tokka(used, "usage", *by, "--format", "json").stdout)
    assert entry == {
        "tenant": "=t,1",
        "key_id": "k",
        "model": "m",
        "requests": 2,
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 5,
        "total_tokens": 15,
    }
    # The quote keeps a spreadsheet from running a tenant's name as a formula.
    (row,) = csv.DictReader(io.StringIO(tokka(used, "usage", *by, "--format", "csv").stdout))
    assert row == {name: str(value) for name, value in entry.items()} | {"tenant": "'=t,1"}


def test_usage_of_longer_ago_is_there_when_asked_for(used: Path) -> None:
    assert "old" not in tokka(used, "usage").stdout
    assert "old" in tokka(used, "usage", "--since", "60d").stdout


@pytest.mark.parametrize("arguments", READERS[:4], ids=" ".join)
def test_program_refuses_a_mistyped_state_dir(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    folder = tmp_path / "mistyped"
    command = [str(TOKKA), *arguments, "--state-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no Tokka database at {folder / 'tokka.db'}" in done.stderr
    assert not folder.exists()


def test_the_program_itself_prints_a_secret_that_a_shell_can_take(tmp_path: Path) -> None:
    command = f'secret=$("{TOKKA}" keys create --name a --quiet --state-dir "{tmp_path}") && printf %s "$secret"'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert SECRET.fullmatch(done.stdout)
    assert done.stderr == ""
