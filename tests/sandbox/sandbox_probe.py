"""Tries the actions of a compromised compiler inside the sandbox. Run by test_sandbox.py; prints JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable

from tokka.sandbox import confinement

LIBC = ctypes.CDLL(None, use_errno=True)
PARENT = os.getppid()
PTRACE_ATTACH = 16


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError."""
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def read_parents_memory() -> None:
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    call("process_vm_readv", PARENT, vector, ctypes.c_ulong(1), vector, ctypes.c_ulong(1), ctypes.c_ulong(0))


PROBES: dict[str, Callable[[], object]] = {
    "internet socket": lambda: socket.socket(socket.AF_INET),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "read a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "write a file": lambda: os.open("/tmp/probe", os.O_CREAT | os.O_WRONLY),
    "parent's environment": lambda: os.open(f"/proc/{PARENT}/environ", os.O_RDONLY),
    "parent's memory by file": lambda: os.open(f"/proc/{PARENT}/mem", os.O_RDONLY),
    "parent's memory by call": read_parents_memory,
    "ptrace": lambda: call("ptrace", PTRACE_ATTACH, PARENT, None, None),
    "signal to the parent": lambda: os.kill(PARENT, 0),
    "remove a file": lambda: os.unlink("/nowhere/nothing"),
    "list a folder": lambda: os.listdir("/"),
    "raise a limit": lambda: call("setrlimit", resource.RLIMIT_NOFILE, (ctypes.c_ulong * 2)(64, 64)),
    "shared memory": lambda: call("shmget", 0, 4096, 0o1600),
    "keyring": lambda: call("syscall", 250, 0, -3, 0),
    "signal to itself": lambda: os.kill(os.getpid(), 0),
    "memory": lambda: bytearray(8 << 20),
}


def outcome(probe: Callable[[], object]) -> str:
    try:
        probe()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "allowed"


def main(*names: str) -> None:
    """Run the probes in `names`, by default all. `without-seccomp` in `names`: act as on an unknown machine."""
    if "without-seccomp" in names:
        platform.machine = lambda: "unknown"
    refused = confinement.restrict()
    found = {name: outcome(probe) for name, probe in PROBES.items() if name in names or not names}
    print(json.dumps({"refused": refused, **found}), flush=True)
    # A compiler that aborts ends like this.
    os.kill(os.getpid(), signal.SIGABRT)


if __name__ == "__main__":
    main(*sys.argv[1:])
