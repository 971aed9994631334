"""Packages are pinned by hash and base images by digest. The program's lock lacks packages that it never imports."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
# Files that install from a lock file.
INSTALLING = ["scripts/install", "scripts/clients", "scripts/mutate", "Dockerfile"]


def requirements(lock: Path) -> list[str]:
    """Return the requirements of a lock file, one per line."""
    lines = lock.read_text().replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def names(lock: str) -> set[str]:
    return {line.partition("==")[0] for line in requirements(ROOT / "requirements" / lock)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_file_has_a_hash_of_each_package(lock: Path) -> None:
    found = requirements(lock)
    assert found
    assert [one for one in found if not re.fullmatch(r"[\w.-]+==\S+(\s+--hash=sha256:[0-9a-f]{64})+", one)] == []


@pytest.mark.parametrize("name", INSTALLING)
def test_install_from_a_lock_file_requires_hashes(name: str) -> None:
    commands = re.split(r"\n|&&|\|\|", (ROOT / name).read_text().replace("\\\n", " "))
    installing = [command for command in commands if re.search(r"install\b.* -r ", command)]
    assert installing
    assert [command for command in installing if "--no-deps --require-hashes" not in command] == []


@pytest.mark.parametrize("name", ["Dockerfile", "deploy/compose/cpu.yaml"])
def test_base_image_has_a_digest(name: str) -> None:
    (base,) = re.findall(r"^(?:ARG BASE=|\s+BASE: )(.*)$", (ROOT / name).read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", base)


def test_program_lock_lacks_packages_that_it_does_not_import() -> None:
    lock = runpy.run_path(str(ROOT / "scripts" / "lock.py"))
    assert names("cpu.txt") & (lock["LEFT_OUT"] | lock["COMPARED"]) == set()
    assert lock["COMPARED"] <= names("dev.txt")
    # No package is in both lock files, where its versions could differ.
    assert names("cpu.txt") & names("dev.txt") == set()
