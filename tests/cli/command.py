"""The command line as a subprocess."""

from __future__ import annotations

import subprocess

from tests.program import TOKKA


def tokka(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TOKKA), *arguments], capture_output=True, text=True, timeout=60, check=False)
