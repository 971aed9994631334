"""The command line: its entry point, and the signals of its first second."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any


def main() -> None:
    """Entry point of the `tokka` program."""
    # First of all: the kernel drops a signal that process 1 of a container does not handle.
    serves = sys.argv[1:2] == ["serve"]
    signal.signal(signal.SIGTERM, _stop if serves else _leave)
    if serves:
        signal.signal(signal.SIGINT, _stop)
    from tokka.cli.commands import app

    app()


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End a server that has not begun to serve: nothing is to be drained."""
    raise SystemExit(0)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def __getattr__(name: str) -> Any:
    if name == "app":
        from tokka.cli.commands import app

        return app
    raise AttributeError(name)
