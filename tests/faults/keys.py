"""Keys made on the command line, and their headers."""

from __future__ import annotations

from tests.cli.command import tokka as command


def tokka(*arguments: str) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
