"""The process that compiles clients' constraints reaches no file, no network and no other process."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from tests.engine.tokenizer import byte_tokenizer
from tests.sandbox import sandbox_probe
from tokka.engine.grammars.compiler_process import CompilerProcess
from tokka.engine.supervision.processes import COMPILER_NAME
from tokka.sandbox import confinement

ROOT = Path(__file__).parents[2]
OWN = ("signal to itself", "memory")
NEEDS_SECCOMP = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no list of system calls for this machine"
)


def probed(*names: str) -> dict[str, str]:
    command = [sys.executable, "-m", "tests.sandbox.sandbox_probe", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGABRT, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@NEEDS_SECCOMP
def test_sandbox_denies_files_network_and_processes() -> None:
    found = probed()
    assert found.pop("refused") == ""
    assert found == {name: "allowed" if name in OWN else "EPERM" for name in sandbox_probe.PROBES}


def test_sandbox_denies_files_and_sockets_without_seccomp() -> None:
    names = ("internet socket", "unix socket", "read a file", "write a file", "list a folder", "parent's environment")
    found = probed("without-seccomp", "memory", *names)
    assert "unknown" in found.pop("refused")
    assert found == {**dict.fromkeys(names, "EMFILE"), "memory": "allowed"}


def verdict(machine: str, number: int, *, architecture: int | None = None, argument: int = 0) -> int:
    """Run the filter as the kernel does; return its verdict on a system call."""
    data = {
        confinement._NUMBER_AT: number,
        confinement._ARCHITECTURE_AT: architecture or confinement._ARCHITECTURES[machine][0],
        confinement._FIRST_ARGUMENT_AT: argument,
    }
    lines = list(struct.iter_unpack("HBBI", confinement._instructions(machine)))
    at, word = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        match code:
            case confinement._LOAD:
                word = data[value]
            case confinement._JUMP_IF_EQUAL:
                at += if_true if word == value else if_false
            case confinement._RETURN:
                return int(value)


@pytest.mark.parametrize("machine", confinement._ARCHITECTURES)
def test_sandbox_filter_allows_only_listed_calls(machine: str) -> None:
    place = list(confinement._ARCHITECTURES).index(machine)
    listed = {number for numbers in confinement._ALLOWED.values() if (number := numbers[place]) is not None}
    assert {number for number in range(1000) if verdict(machine, number) == confinement._ALLOW} == listed
    # The system call numbers of x32 begin here.
    assert verdict(machine, 0x4000_0000) == confinement._DENY
    assert verdict(machine, min(listed), architecture=0x4000_0003) == confinement._DENY


@pytest.mark.parametrize("machine", confinement._ARCHITECTURES)
def test_sandbox_filter_allows_signals_to_the_process_itself(machine: str) -> None:
    place = list(confinement._ARCHITECTURES).index(machine)
    for numbers in confinement._TO_ITSELF.values():
        assert verdict(machine, numbers[place], argument=os.getpid()) == confinement._ALLOW
        assert verdict(machine, numbers[place], argument=os.getppid()) == confinement._DENY


def test_bare_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "TOKKA_API_KEY": "k",
        "TOKKA_DATABASE_URL": "d",
        "HF_TOKEN": "h",
        "HOME": "/root",
        "PATH": "/bin",
        "LANG": "C",
    }
    monkeypatch.setattr(os, "environ", given)
    assert confinement.bare_environment() == {"LANG": "C"}


@pytest.fixture
async def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TOKKA_API_KEY", "a-secret-of-the-server")
    process = CompilerProcess(byte_tokenizer())
    await process.start()
    yield process
    await process.close()


def child() -> psutil.Process:
    (found,) = [one for one in psutil.Process().children() if one.name() == COMPILER_NAME]
    return found


def seccomp_modes(pid: int) -> set[str]:
    """Return the seccomp modes of a process's threads. 2 means a filter."""
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return {line.split()[1] for text in texts for line in text.splitlines() if line.startswith("Seccomp:")}


@pytest.mark.engine
async def test_compiler_starts_without_the_servers_environment(compiler: CompilerProcess) -> None:
    started = await asyncio.to_thread(child)
    assert "a-secret-of-the-server" not in started.environ().values()
    assert set(started.environ()) <= {"LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


@pytest.mark.engine
@NEEDS_SECCOMP
async def test_compiler_works_inside_the_sandbox(compiler: CompilerProcess) -> None:
    question = {"kind": "regex", "text": "[ab]+", "states": 1000}
    assert (await compiler.compile(question)).grammar
    # All of its threads have the filter.
    assert seccomp_modes(child().pid) == {"2"}


@pytest.mark.engine
async def test_compiler_start_survives_a_refused_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ready(*_: object) -> dict[str, Any]:
        return {"sandbox": "seccomp: Function not implemented"}

    monkeypatch.setattr(CompilerProcess, "_ask", ready)
    process = CompilerProcess(byte_tokenizer())
    with capture_logs() as lines:
        await process.start()
    await process.close()
    assert [(line["log_level"], line["reason"]) for line in lines] == [("debug", "seccomp: Function not implemented")]
