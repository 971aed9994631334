"""A network namespace as another host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# This host and the other one, on the cable between them.
HOST, GUEST = "10.99.22.1", "10.99.22.2"
SPACE = "tokka-fleet"
# Runs a command on the other host.
INSIDE = ("ip", "netns", "exec", SPACE)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def another_host() -> Iterator[None]:
    """Make a host that reaches this one over one cable, `tkf0`."""
    try:
        ip("netns", "add", SPACE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root and `ip netns`")
    try:
        ip("link", "add", "tkf0", "type", "veth", "peer", "name", "tkf1", "netns", SPACE)
        ip("addr", "add", f"{HOST}/24", "dev", "tkf0")
        ip("link", "set", "tkf0", "up")
        ip("-n", SPACE, "addr", "add", f"{GUEST}/24", "dev", "tkf1")
        ip("-n", SPACE, "link", "set", "tkf1", "up")
        ip("-n", SPACE, "link", "set", "lo", "up")
        yield
    finally:
        ip("netns", "del", SPACE)
