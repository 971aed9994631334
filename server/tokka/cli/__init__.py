"""The command line: the entry point, and signal handlers until the command installs its own."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any


def main() -> None:
    """Run the `tokka` program."""
    # Install handlers before anything else: the kernel drops signals that process 1 of a container does not handle.
    serves = sys.argv[1:2] in (["serve"], ["worker"])
    signal.signal(signal.SIGTERM, _stop if serves else _leave)
    if serves:
        signal.signal(signal.SIGINT, _stop)
    from tokka.cli.commands import app

    app()


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Exit with code 0. The server has not begun to serve, so there is nothing to drain."""
    raise SystemExit(0)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def __getattr__(name: str) -> Any:
    if name == "app":
        from tokka.cli.commands import app

        return app
    raise AttributeError(name)
