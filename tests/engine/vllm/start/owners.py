"""Processes that own a folder and are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

# Creates a folder in the given base, prints its path, and waits to be killed.
OWNER = """
import sys, time
from tokka.engine.vllm.start.engine_folder import EngineFolder
print(EngineFolder({"VLLM_RPC_BASE_PATH": sys.argv[1]}).path, flush=True)
time.sleep(600)
"""


def killed_owners(base: Path) -> Path:
    """Return the folder of a killed process."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(base)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        assert path.is_dir()
        owner.send_signal(signal.SIGKILL)
    return path
