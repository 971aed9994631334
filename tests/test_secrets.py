"""Secrets: read from files, removed from the environment, and in no message and no child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from tests.program import Program, failing, running
from tests.store.databases import Postgres
from tokka.cli import app
from tokka.errors import ConfigurationError, StartupError
from tokka.settings import Settings, exposed_files, load_settings, visible_options, with_secrets

KEYS = {
    "TOKKA_API_KEY": "secret-api-key-of-the-test",
    "TOKKA_ADMIN_KEY": "secret-admin-key-of-the-test",
    "TOKKA_METRICS_KEY": "secret-metrics-key-of-the-test",
}


pytestmark = pytest.mark.usefixtures("bare_environment")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets"
    path.touch(0o600)
    return path


def loaded(**flags: Any) -> Settings:
    return with_secrets(load_settings(flags))


def refusal(**flags: Any) -> str:
    with pytest.raises(StartupError) as refused:
        loaded(**flags)
    return str(refused.value)


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ("one-key", ["one-key"]),
        ("first\nsecond\n", ["first", "second"]),
        ("# users\n\nfirst  # alice\n  second\t# bob\r\n   # nobody\n#third\n", ["first", "second"]),
        ("with#inside\n", ["with#inside"]),
        ("with,comma\n", ["with,comma"]),
        ("\ufefffirst\n", ["first"]),
    ],
)
@pytest.mark.parametrize("name", ["api_key", "admin_key", "metrics_key"])
def test_a_key_file_has_one_key_a_line(file: Path, name: str, content: str, keys: list[str]) -> None:
    file.write_text(content)
    assert getattr(loaded(**{f"{name}_file": file}), name) == keys


def test_the_keys_of_a_file_are_added_to_the_others(file: Path) -> None:
    file.write_text("from-the-file\n")
    assert loaded(api_key=["from-the-flag"], api_key_file=file).api_key == ["from-the-flag", "from-the-file"]


def test_setting_stays_unchanged_when_no_file_sets_it() -> None:
    assert loaded(port=1) == load_settings({"port": 1})
    assert not loaded(port=1).names_database


def test_the_environment_names_the_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("from-the-file\n")
    monkeypatch.setenv("TOKKA_API_KEY_FILE", str(file))
    monkeypatch.setenv("TOKKA_DATABASE_URL_FILE", str(file))
    settings = loaded()
    assert (settings.api_key, settings.database_url) == (["from-the-file"], "from-the-file")
    assert settings.names_database


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n", "holds no key"),
        (b"good\ntwo words\n", "line 2"),
        ("good\n\n# x\nküche\n".encode(), "line 4"),
        (b"\xff\xfe\xfa", "not a text file"),
        (b"x" * (2 << 20), "larger than"),
    ],
)
def test_a_wrong_key_file_is_refused_by_its_line(file: Path, content: bytes, named: str) -> None:
    file.write_bytes(content)
    message = refusal(api_key_file=file)
    assert message.startswith("--api-key-file: ")
    assert named in message
    assert str(file) in message
    assert "two words" not in message
    assert "küche" not in message


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    assert refusal(admin_key_file=tmp_path / "none").startswith("--admin-key-file: cannot read ")


@pytest.mark.parametrize("name", ["api_key", "admin_key", "metrics_key", "database_url"])
@pytest.mark.parametrize(
    "secret", ["tk-the-secret", f"the-secret-{'0' * 48}", "postgresql://user:the-secret@host/name"]
)
def test_secret_in_place_of_its_file_is_not_shown(name: str, secret: str) -> None:
    message = refusal(**{f"{name}_file": Path(secret)})
    assert message.endswith(f"it must name a file; give the secret itself as --{name.replace('_', '-')}")
    assert "the-secret" not in message


# -- secrets in refused settings -------------------------------------------------------------------------------

WRONG_URLS = [
    *("postgresql://tokka:s3@cret@127.0.0.1:1/tokka", "postgresql://tokka:s3@cret/seaside@127.0.0.1:1/tokka"),
    *("postgresql://tokka:s3@cret?seaside@127.0.0.1:1/tokka", "postgresql://tokka:s3@cret:1@127.0.0.1:1/tokka"),
    *("postgresql://tokka:@s3cret@127.0.0.1:1/tokka", "postgresql://tokka/s3@cret@127.0.0.1:1/tokka"),
    *("postgresql://tokka:s3cret@127.0.0.1:1x/tokka", "postgresql:/tokka:s3cret@127.0.0.1:1/tokka"),
    *("mysql://tokka:s3cret@127.0.0.1:1/tokka", "tokka:s3cret@127.0.0.1:1/tokka"),
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_no_part_of_a_wrong_database_url_is_shown(url: str) -> None:
    code, lines = failing("--engine", "fake", "--port", "0", "--log-format", "json", "--database-url", url)
    assert (code, len(lines)) == (2, 1)
    assert "%40" in lines[0]
    for part in ("s3", "cret", "seaside", "127.0.0.1"):
        assert part not in lines[0].replace("user:password@host:5432/name", "")


def test_escaped_password_is_taken(postgres: Postgres) -> None:
    password = "a@b:c/d?e#f%g"
    engine = create_engine(postgres.url("postgres").replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE ROLE escaped LOGIN SUPERUSER PASSWORD '{password}'".replace(":", r"\:")))
    engine.dispose()
    url = postgres.new_database().replace("tokka:the-password", f"escaped:{quote(password, safe='')}")
    done = CliRunner().invoke(app, ["keys", "create", "--name", "a", "--database-url", url])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--state-dir", "postgresql://tokka:the-secret@127.0.0.1/tokka"),
        ("--oidc-issuer", "https://user:the-secret@login.example.org"),
        ("--engine-arg", "the-secret"),
    ],
)
def test_refused_setting_does_not_show_its_secret(option: str, value: str) -> None:
    code, lines = failing("--engine", "fake", "--port", "0", option, value)
    assert (code, len(lines)) == (2, 1)
    assert option in lines[0]
    assert "the-secret" not in lines[0]


@pytest.mark.parametrize(
    "content", ['api_key: "tk-the-secret\n', "api_key: [tk-the-secret\n", "api_key: *the-secret\n"]
)
def test_broken_config_file_is_not_quoted(file: Path, content: str) -> None:
    file.write_text(f"port: 1\n{content}")
    with pytest.raises(ConfigurationError) as refused:
        load_settings({}, file)
    assert "the-secret" not in str(refused.value)
    assert str(refused.value).startswith(f"the config file {file} is not YAML: look at line ")


@pytest.mark.parametrize("content", ["", "postgresql://a/b\npostgresql://c/d\n"])
def test_a_database_file_holds_one_url(file: Path, content: str) -> None:
    file.write_text(content)
    assert refusal(database_url_file=file).startswith("--database-url-file: ")


def test_a_database_is_named_once(file: Path) -> None:
    file.write_text("postgresql://a/b\n")
    message = refusal(database_url="postgresql://user:the-password@a/b", database_url_file=file)
    assert "--database-url-file" in message
    assert "the-password" not in message


def test_an_empty_key_file_does_not_open_the_server(file: Path) -> None:
    code, lines = failing("--engine", "fake", "--port", "0", "--api-key-file", str(file))
    assert (code, len(lines)) == (2, 1)
    assert "--api-key-file" in lines[0]


@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o600, False), (0o640, False), (0o400, False), (0o644, True), (0o602, True)]
)
def test_a_file_that_all_can_read_or_change_is_exposed(file: Path, mode: int, exposed: bool) -> None:
    file.chmod(mode)
    assert exposed_files(Settings(metrics_key_file=file)) == (["--metrics-key-file"] if exposed else [])


def test_key_of_a_file_has_the_permissions_of_its_option(tmp_path: Path) -> None:
    options: list[str] = []
    for name in ("api", "admin", "metrics"):
        path = tmp_path / name
        path.write_text(f"# {name}\nkey-of-the-{name}-file\n")
        path.chmod(0o644 if name == "admin" else 0o600)
        options += [f"--{name}-key-file", str(path)]
    with running("--engine", "fake", *options) as program:
        for name, address in (("api", "/v1/models"), ("admin", "/admin/keys"), ("metrics", "/metrics")):
            assert get(program, address, f"key-of-the-{name}-file") == 200
        assert get(program, "/metrics", "key-of-the-api-file") == 403
        (warning,) = [line for line in program.log if line.get("level") == "warning"]
        assert (warning["event"], warning["options"]) == ("secret_files_readable_by_all", ["--admin-key-file"])
        assert "key-of-the" not in str(program.log) + program.stderr()


def test_the_commands_find_the_database_of_a_file(file: Path, postgres: Postgres) -> None:
    file.write_text(f"{postgres.new_database()}\n")
    env = {"TOKKA_DATABASE_URL_FILE": str(file), "TOKKA_API_KEY_FILE": "/none/is/read"}
    made = CliRunner().invoke(app, ["keys", "create", "--name", "a", "-q"], env=env)
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("tk-")
    with running("--engine", "fake", env={"TOKKA_DATABASE_URL_FILE": str(file)}) as program:
        assert get(program, "/v1/models", made.stdout.strip()) == 200
        assert get(program, "/v1/models", "wrong") == 401


# -- the command line -------------------------------------------------------------------------------------------


def test_secrets_on_the_command_line_are_named() -> None:
    flags = {"api_key": ["a"], "port": 1, "database_url": "postgresql://user:password@host/name"}
    assert visible_options(flags) == ["--api-key", "--database-url"]
    assert visible_options({"database_url": "postgresql://host/name", "api_key_file": Path("x")}) == []


def test_a_key_on_the_command_line_is_warned_of_once() -> None:
    keys = (
        "--api-key",
        "first-key-0123456789",
        "--api-key",
        "second-key-0123456789",
        "--metrics-key",
        "third-key-0123",
    )
    with running("--engine", "fake", *keys) as program:
        (warning,) = [line for line in program.log if line["event"] == "secrets_in_process_list"]
        assert warning["options"] == ["--api-key", "--metrics-key"]
        assert warning["remedy"] == "give --api-key-file, --metrics-key-file instead"
    with running("--engine", "fake", env=KEYS) as program:
        assert not [line for line in program.log if line["event"] == "secrets_in_process_list"]


# -- the environment --------------------------------------------------------------------------------------------


def test_secrets_leave_the_environment_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("tokka_database_url", "postgresql://user:the-password@host/name")
    monkeypatch.setenv("TOKKA_PORT", "1001")
    monkeypatch.setenv("HF_TOKEN", "the-token")
    settings = load_settings({})
    assert settings.api_key == [KEYS["TOKKA_API_KEY"]]
    assert settings.admin_key == [KEYS["TOKKA_ADMIN_KEY"]]
    assert settings.metrics_key == [KEYS["TOKKA_METRICS_KEY"]]
    assert settings.database_url == "postgresql://user:the-password@host/name"
    script = "import os; print(os.environ)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not any(secret in child.stdout for secret in (*KEYS.values(), "the-password"))
    # vLLM downloads with this token, in a separate process.
    assert "the-token" in child.stdout
    assert "TOKKA_PORT" in child.stdout


def test_secrets_leave_the_environment_of_a_wrong_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_API_KEY", "two words")
    with pytest.raises(ConfigurationError, match="TOKKA_API_KEY"):
        load_settings({})
    assert "TOKKA_API_KEY" not in os.environ


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_no_child_process_has_a_secret_in_its_environment(postgres: Postgres) -> None:
    url = postgres.new_database()
    with running(env={**KEYS, "TOKKA_DATABASE_URL": url}) as program:
        # A constraint starts the process that compiles it.
        body = {"model": program.model, "prompt": "x", "max_tokens": 2, "structured_outputs": {"regex": "a|b"}}
        headers = {"authorization": f"Bearer {KEYS['TOKKA_API_KEY']}"}
        assert httpx.post(f"{program.url}/v1/completions", json=body, headers=headers, timeout=60).status_code == 200
        children = program.children()
        names = " ".join(" ".join([child.name(), *child.cmdline()]) for child in children)
        assert "EngineCore" in names
        assert "tokka.engine.grammars.compiler" in names
        for child in children:
            environment = environ_of(child)
            assert "PATH=" in environment, child
            for secret in (*KEYS.values(), "the-password"):
                assert secret not in environment, child


def environ_of(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")


def get(program: Program, path: str, key: str) -> int:
    return httpx.get(f"{program.url}{path}", headers={"authorization": f"Bearer {key}"}).status_code
