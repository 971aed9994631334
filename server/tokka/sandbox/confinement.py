"""Blocks access to files, network and other processes for a process that handles untrusted input.

There are two layers. Resource limits work everywhere: without new file descriptors, the process opens no file and no
socket. Where the kernel supports it, a seccomp filter allows only system calls for memory, time, threads and open
descriptors; all others get EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
# Applies the filter to all threads.
_SECCOMP_FILTER_FLAG_TSYNC = 1
_ALLOW = 0x7FFF_0000
_DENY = 0x0005_0000 | errno.EPERM
# Classic BPF operations: load a word of `struct seccomp_data`, jump if equal, return.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
# The AUDIT_ARCH_* value, and the system call number of seccomp().
_ARCHITECTURES = {"x86_64": (0xC000_003E, 317), "aarch64": (0xC000_00B7, 277)}
# Allowed system calls: their numbers on x86_64 and aarch64, or None if the architecture lacks the call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # Open descriptors.
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "poll": (7, None),
    "ppoll": (271, 73),
    # Memory.
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    # Time.
    "setitimer": (38, 103),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    # Existing threads, and their signals.
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "sysinfo": (99, 179),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Allowed only if the target is the process itself, which uses them to abort.
_TO_ITSELF: dict[str, tuple[int, int]] = {"kill": (62, 129), "tgkill": (234, 131)}


# Environment variables that Python and its libraries may need. All others may hold secrets.
_ENVIRONMENT = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")


def bare_environment() -> dict[str, str]:
    """Return the environment of a sandboxed process, without secrets and settings."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def restrict() -> str:
    """Restrict this process and all its threads permanently. Return why no seccomp filter was set, or "" if one was."""
    # The limit is 1, not 0: poll() refuses more descriptors than the limit. Descriptor 0 is in use, so none is free.
    for limit, value in ((resource.RLIMIT_NOFILE, 1), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0)):
        resource.setrlimit(limit, (value, value))
    return _filter_system_calls()


def _filter_system_calls() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return f"no list of system calls for {machine}"
    instructions = _instructions(machine)
    program = _Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        return f"no_new_privs: {os.strerror(ctypes.get_errno())}"
    _, seccomp = _ARCHITECTURES[machine]
    flags = ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC)
    if libc.syscall(ctypes.c_long(seccomp), ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER), flags, ctypes.byref(program)):
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return ""


def _instructions(machine: str) -> bytes:
    architecture, _ = _ARCHITECTURES[machine]
    place = list(_ARCHITECTURES).index(machine)
    lines = [
        _line(_LOAD, _ARCHITECTURE_AT),
        # On another architecture the numbers mean other calls.
        _line(_JUMP_IF_EQUAL, architecture, if_true=1),
        _line(_RETURN, _DENY),
        _line(_LOAD, _NUMBER_AT),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[place]) is not None:
            lines += [_line(_JUMP_IF_EQUAL, number, if_false=1), _line(_RETURN, _ALLOW)]
    for numbers in _TO_ITSELF.values():
        lines += [
            _line(_JUMP_IF_EQUAL, numbers[place], if_false=4),
            _line(_LOAD, _FIRST_ARGUMENT_AT),
            _line(_JUMP_IF_EQUAL, os.getpid(), if_false=1),
            _line(_RETURN, _ALLOW),
            _line(_RETURN, _DENY),
        ]
    return b"".join([*lines, _line(_RETURN, _DENY)])


def _line(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one `struct sock_filter`."""
    return struct.pack("HBBI", code, if_true, if_false, value)
