"""An engine process leaves Ctrl-C to its server."""

from __future__ import annotations

import signal

from tokka.engine.supervision.lifeline import leave_interrupts_to_the_server


def test_engine_ignores_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    leave_interrupts_to_the_server()
    try:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
