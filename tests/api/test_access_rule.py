"""The access rule: set and logged at the start. A first key closes a running server, and no revocation reopens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.accounts.issuers import Issuer
from tests.program import Program, eventually, failing, running
from tests.store.rows import added, key
from tokka.cli import app
from tokka.store.sqlite import SqliteDatabase

FAKE = ("--engine", "fake")
KEY = "static-key-of-the-test"
PROXIED = {"x-forwarded-for": "203.0.113.7", "host": "llm.example.org"}


def keys(folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["keys", *arguments, "--state-dir", str(folder)])
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def made(folder: Path, *options: str) -> str:
    """Create a key and return its id."""
    keys(folder, "create", "--name", "a", *options)
    return keys(folder, "list").splitlines()[-1].split()[0]


@pytest.fixture(params=["revoked", "expired"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a database with one key, which is revoked or expired."""
    if request.param == "revoked":
        keys(tmp_path, "revoke", made(tmp_path))
    else:
        database = SqliteDatabase(tmp_path, 1.0)
        database.open(None)
        added(database, key(expires_at=1_800_000_000 - 86400 * 365))
        database.close()
    return tmp_path


def status(program: Program, secret: str | None = None, **headers: str) -> int:
    headers |= {"authorization": f"Bearer {secret}"} if secret else {}
    return httpx.get(f"{program.url.replace('0.0.0.0', '127.0.0.1')}/v1/models", headers=headers).status_code


def access_lines(program: Program) -> list[dict[str, Any]]:
    return [line for line in program.log if line["event"] == "access"]


def test_unusable_keys_leave_a_loopback_server_open(unusable: Path) -> None:
    with running(*FAKE, "--state-dir", str(unusable)) as program:
        assert status(program) == 200
        assert status(program, **PROXIED) == 403
        (line,) = access_lines(program)
        assert (line["rule"], line["revoked_or_expired"]) == ("open on loopback", 1)


def test_unusable_keys_do_not_count_beyond_loopback(unusable: Path) -> None:
    code, lines = failing(*FAKE, "--host", "0.0.0.0", "--port", "0", "--state-dir", str(unusable))
    assert (code, len(lines)) == (2, 1)
    assert "without any active key (1 in the database are revoked or expired)" in lines[0]
    assert "--no-auth" in lines[0]


def test_no_auth_opens_the_server_when_its_keys_are_unusable(unusable: Path) -> None:
    with running(*FAKE, "--host", "0.0.0.0", "--no-auth", "--state-dir", str(unusable)) as program:
        assert status(program, **PROXIED) == 200
        assert [line["rule"] for line in access_lines(program)] == ["open to everyone (--no-auth)"]


def test_start_says_how_many_keys_are_active(tmp_path: Path) -> None:
    keys(tmp_path, "revoke", made(tmp_path))
    for _ in range(2):
        made(tmp_path)
    with running(*FAKE, "--api-key", KEY, "--state-dir", str(tmp_path)) as program:
        assert status(program) == 401
        assert status(program, KEY) == 200
        (line,) = access_lines(program)
        assert (line["rule"], line["revoked_or_expired"]) == ("keys required: 3 active", 1)


def test_start_says_that_no_key_runs_models(tmp_path: Path) -> None:
    made(tmp_path, "--scope", "admin")
    with running(*FAKE, "--metrics-key", KEY, "--state-dir", str(tmp_path)) as program:
        (warning,) = [line for line in program.log if line["event"] == "no_key_for_inference"]
        assert "tokka keys create" in warning["remedy"]
        assert [line["rule"] for line in access_lines(program)] == ["keys required: 2 active"]


def test_start_says_that_a_unix_socket_is_open(tmp_path: Path) -> None:
    with running(*FAKE, "--uds", str(tmp_path / "socket")) as program:
        assert [line["rule"] for line in access_lines(program)] == ["open on the unix socket"]


def test_start_says_that_an_issuer_lets_in() -> None:
    issuer = Issuer("rsa")
    with running(*FAKE, "--oidc-issuer", issuer.url, "--oidc-audience", "tokka") as program:
        assert [line["rule"] for line in access_lines(program)] == ["keys required: 0 active and tokens of the issuer"]
    issuer.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--api-key", KEY), "--api-key"),
        (("--admin-key", KEY), "--admin-key"),
        (("--metrics-key", KEY), "--metrics-key"),
        (("--oidc-issuer", "http://127.0.0.1:9", "--oidc-audience", "tokka"), "--oidc-issuer"),
    ],
)
def test_no_auth_is_refused_together_with_keys(options: tuple[str, ...], named: str) -> None:
    code, lines = failing(*FAKE, "--port", "0", "--no-auth", *options)
    assert (code, len(lines)) == (2, 1)
    assert f"there are keys ({named})" in lines[0]
    assert "leave out --no-auth" in lines[0]
    assert KEY not in lines[0]


def test_no_auth_is_refused_together_with_stored_keys(tmp_path: Path) -> None:
    made(tmp_path)
    code, lines = failing(*FAKE, "--port", "0", "--no-auth", "--state-dir", str(tmp_path))
    assert (code, len(lines)) == (2, 1)
    for part in ("1 active in the database", "leave out --no-auth", "tokka keys revoke"):
        assert part in lines[0]


@pytest.mark.parametrize("options", [(), ("--no-auth",)])
def test_first_key_closes_a_running_server_and_is_said(tmp_path: Path, options: tuple[str, ...]) -> None:
    with running(*FAKE, *options, "--state-dir", str(tmp_path)) as program:
        assert status(program) == 200
        secret = keys(tmp_path, "create", "--name", "a", "--quiet")
        eventually(lambda: status(program) == 401, within_s=2)
        line = program.wait_for("access", 10)
        assert (line["rule"], line["level"]) == ("keys required: 1 active", "warning")
        assert status(program, secret) == 200
        keys(tmp_path, "revoke", keys(tmp_path, "list").splitlines()[-1].split()[0])
        eventually(lambda: status(program, secret) == 401, within_s=2)
        # Revoking the last key does not open a running server.
        assert status(program) == 401


def test_first_key_of_a_database_is_announced(tmp_path: Path) -> None:
    note = "from now on, servers with this database ask everyone for a key"
    assert note in keys(tmp_path, "create", "--name", "a")
    assert note not in keys(tmp_path, "create", "--name", "b")
    assert note not in keys(tmp_path / "other", "create", "--name", "c", "--json")
