"""Signal handlers of a running server or worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from tokka.engine.supervision.processes import end_resource_tracker, kill_children
from tokka.observability.log_writer import LineWriter

# Maximum seconds to write the last log lines after a second signal. A blocked log must not delay the exit longer.
_LAST_LINES_S = 0.2


def drain_on_signals(drain: Callable[[], None], lines: LineWriter) -> None:
    """Drain on SIGTERM, SIGINT or SIGHUP. End the process at once on a second SIGTERM or SIGINT."""
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if signalled:
            kill_children()
            end_resource_tracker()
            lines.finish(_LAST_LINES_S)
            os._exit(1)
        signalled = True
        drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    # `nohup` makes the process ignore SIGHUP. A closing terminal may send it twice, so it only ever drains.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, drain)
