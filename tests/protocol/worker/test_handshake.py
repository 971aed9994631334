"""The handshake between versions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tokka import __version__
from tokka.protocol.worker.frames import BrokenFrame
from tokka.protocol.worker.handshake import (
    PROTOCOL,
    Hello,
    Refusal,
    Welcome,
    hello_of,
    payload_of,
    refusal_of,
    reply_of,
)


def hello(**changes: Any) -> Hello:
    values: dict[str, Any] = {"token": "t", "worker": "w", "model": "m", "node": "n", "pid": 1}
    return Hello(**values | changes)


@pytest.mark.parametrize("reply", [Welcome(), Refusal("the reason")])
def test_replies_are_read_as_they_were_written(reply: Welcome | Refusal) -> None:
    assert reply_of(payload_of(reply)) == reply


def test_hello_of_a_later_version_is_read() -> None:
    later = {**msgspec.to_builtins(hello(protocol=PROTOCOL + 1, version="9.9")), "news": [1, 2]}
    assert hello_of(msgspec.msgpack.encode(later)) == hello(protocol=PROTOCOL + 1, version="9.9")


@pytest.mark.parametrize("payload", [b"", b"GET / HTTP/1.1\r\n", b"\x90", msgspec.msgpack.encode({"token": 1})])
def test_other_bytes_are_not_a_hello(payload: bytes) -> None:
    with pytest.raises(BrokenFrame, match="not a hello"):
        hello_of(payload)


def test_worker_with_the_token_may_join() -> None:
    assert refusal_of(hello(), "t") is None


def test_worker_of_another_version_may_join_with_its_protocol() -> None:
    assert refusal_of(hello(version="0.0.1"), "t") is None


def test_refusal_names_both_versions() -> None:
    reason = refusal_of(hello(protocol=PROTOCOL + 1, version="9.9"), "t")
    assert reason is not None
    assert f"Tokka 9.9 (protocol {PROTOCOL + 1})" in reason
    assert f"Tokka {__version__} (protocol {PROTOCOL})" in reason


@pytest.mark.parametrize("token", ["", "T", "té", "t" * 1000])
def test_worker_without_the_token_learns_no_version(token: str) -> None:
    reason = refusal_of(hello(token=token, protocol=PROTOCOL + 1), "t")
    assert reason is not None
    assert "token" in reason
    assert __version__ not in reason
