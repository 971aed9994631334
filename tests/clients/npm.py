"""Installs packages from npm into a folder of a test, so that the checkout stays clean."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.needs import need

INSTALL_S = 300


def install(package: str, folder: Path) -> None:
    """Install a package with its version into the folder. It is in no lock file: large, or not free software."""
    need("node", "npm")
    (folder / "package.json").write_text("{}")
    run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", package], folder)


def install_locked(source: Path, folder: Path) -> None:
    """Copy a folder with a lock file to `folder`, and install its packages there."""
    need("node", "npm")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    run(["npm", "ci", "--no-audit", "--no-fund"], folder)


def run(command: list[str], folder: Path) -> None:
    """Run a step of an installation."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr
