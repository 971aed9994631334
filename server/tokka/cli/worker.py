"""`tokka worker`: runs an engine for gateways, until a signal."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import uvloop

from tokka import __version__
from tokka.cli.drain_signals import drain_on_signals
from tokka.cli.start import launch
from tokka.engine.base import Engine
from tokka.engine.factory import engine_factory
from tokka.engine.supervision.heap import collect_while_idle, trim_heap
from tokka.fleet.address import address_of
from tokka.fleet.worker import Worker, WorkerOptions
from tokka.observability.log_writer import LineWriter
from tokka.settings import Settings

log = structlog.get_logger("tokka.worker")

# Seconds without a gateway after which a worker ends. A gateway's restart, also on another machine, takes less.
_GATEWAY_TIMEOUT_S = 300.0


def run(
    flags: dict[str, Any],
    config: Path | None,
    join: list[str],
    join_token_file: Path,
    gateway_timeout: float | None,
    worker_id: str | None,
) -> int:
    """Serve the gateways until drained. Return the exit code. Print a start-up failure as one line on stderr."""

    def work(settings: Settings, lines: LineWriter) -> int:
        options = WorkerOptions(
            worker=worker_id or f"{socket.gethostname()}-{os.getpid()}",
            model=settings.names()[0],
            gateways=[address_of(text) for text in join],
            token_file=join_token_file,
            gateway_timeout_s=gateway_timeout or _GATEWAY_TIMEOUT_S,
            drain_timeout_s=settings.drain_timeout,
            stall_timeout_s=settings.stall_timeout,
            max_quick_deaths=settings.max_quick_deaths,
        )
        create_engine = engine_factory(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(options, create_engine, lines))
        return 0

    return launch(flags, config, work)


async def _work(options: WorkerOptions, create_engine: Callable[[], Engine], lines: LineWriter) -> None:
    worker = Worker(options, create_engine)
    drain_on_signals(worker.drain, lines)
    # A collection of all imported objects would block the event loop for 0.1 s.
    trim_heap()
    log.info("worker_started", worker=options.worker, model=options.model, version=__version__, pid=os.getpid())
    aside = [
        asyncio.create_task(_announce(worker, options)),
        asyncio.create_task(collect_while_idle(lambda: worker.open_requests)),
    ]
    try:
        await worker.run()
    finally:
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
        log.info("stopped")


async def _announce(worker: Worker, options: WorkerOptions) -> None:
    async for progress in worker.supervisor.changes():
        if progress.state == "ready":
            log.info("ready", model=options.model, after_s=round(progress.elapsed_s, 1))
