"""Keys made on the command line, and their headers."""

from __future__ import annotations

import subprocess

from tests.program import TOKKA


def tokka(*arguments: str) -> str:
    done = subprocess.run([str(TOKKA), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
