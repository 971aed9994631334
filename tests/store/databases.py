"""Databases for tests: a PostgreSQL server from Debian's package, and databases of earlier revisions."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.program import eventually, free_port
from tokka.store.database import Database

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@dataclass
class Postgres:
    """A PostgreSQL server on a free port. It runs without fsync, because its data need not survive."""

    folder: Path
    port: int
    user: str | None
    process: subprocess.Popen[bytes] | None = None
    options: list[str] = field(default_factory=lambda: ["-F", "-c", "max_connections=50"])

    def start(self) -> None:
        command = [str(_PROGRAMS[-1].with_name("postgres")), "-D", str(self.folder / "data"), "-p", str(self.port)]
        command += ["-h", "127.0.0.1", "-k", str(self.folder), *self.options]
        self.process = subprocess.Popen(
            command, user=self.user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        eventually(self.answers, within_s=30)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server with this signal. SIGINT closes all connections and shuts down cleanly."""
        if self.process:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def answers(self) -> bool:
        probe = [str(_PROGRAMS[-1].with_name("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(probe, check=False).returncode == 0

    def url(self, database: str) -> str:
        return f"postgresql://tokka:the-password@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"t{uuid.uuid4().hex}"
        engine = create_engine(self.url("postgres").replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    if not _PROGRAMS:
        pytest.skip("PostgreSQL is not installed; scripts/system-packages installs it")
    user = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("there is no user `postgres` to run PostgreSQL as")
    folder = Path(tempfile.mkdtemp(prefix="tokka-postgres-"))
    server = Postgres(folder, free_port(), user)
    try:
        (folder / "password").write_text("the-password")
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        subprocess.run(
            [
                *(_PROGRAMS[-1], "-D", folder / "data", "-U", "tokka", "-A", "scram-sha-256", "-N"),
                *("--pwfile", folder / "password", "-E", "UTF8", "--no-locale"),
            ],
            user=user,
            check=True,
            capture_output=True,
            cwd=folder,
        )
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


# Statements that undo each revision, newest first.
_UNDO = {
    "0004": ["DROP TABLE leases", "DROP TABLE servers"],
    "0003": ["ALTER TABLE keys DROP COLUMN token_key", "ALTER TABLE keys DROP COLUMN previous_token_key"],
    "0002": ["DROP TABLE downtimes"],
    "0005": ["DROP TABLE responses", "DROP TABLE response_events"],
}


def go_back_to(revision: str, database: Database) -> None:
    """Bring the database into the state of an earlier revision."""
    with database.transaction(write=True) as connection:
        for undone, statements in _UNDO.items():
            for statement in statements if undone > revision else ():
                connection.execute(text(statement))
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
