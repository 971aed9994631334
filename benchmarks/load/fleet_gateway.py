"""A gateway of one worker: `python -m benchmarks.load.fleet_gateway [--tls] [--port N] ENGINE OPTIONS`.

It serves HTTP as `tokka serve` does. Its engine is in a `tokka worker`, which is its child process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
from pathlib import Path

import uvloop
from tests.program import TOKKA

from tokka.app import create_server
from tokka.cli.listener import bound
from tokka.cli.serve import serve
from tokka.fleet.listener import Listener
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.token_file import TOKEN_NAME, ensure_token_file, server_context
from tokka.observability.log_writer import LineWriter
from tokka.observability.logging import configure_logging
from tokka.settings import Settings


async def run(folder: Path, lines: LineWriter, *, tls: bool, port: int, options: list[str]) -> int:
    """Start the worker, wait until it is ready, and serve its engine until stopped. Return the exit code."""
    token = ensure_token_file(folder, tls=tls)
    ready: asyncio.Future[RemoteWorker] = asyncio.get_running_loop().create_future()

    def on_change(worker: RemoteWorker) -> None:
        if worker.state == "ready" and not ready.done():
            ready.set_result(worker)

    listener = Listener(token.token, server_context(folder, token), lambda _: None, on_change)
    door = socket.create_server(("127.0.0.1", 0))
    listener.open([door])
    command = [str(TOKKA), "worker", "--join", f"127.0.0.1:{door.getsockname()[1]}", "--log-level", "error"]
    command += ["--join-token-file", str(folder / TOKEN_NAME)]
    process = await asyncio.create_subprocess_exec(*command, *options)
    try:
        worker = await ready
        settings = Settings(port=port, engine="fake", state_dir=folder)
        with bound(settings) as listeners:
            return await serve(settings, lambda: create_server(settings, lambda: worker.engine), listeners, lines)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await listener.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log-format", choices=["json"], default="json")
    chosen, options = parser.parse_known_args()
    lines = configure_logging("json", "info")
    with tempfile.TemporaryDirectory(prefix="tokka-fleet-") as folder:
        work = run(Path(folder), lines, tls=chosen.tls, port=chosen.port, options=options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(work)
    lines.finish()
    return code


if __name__ == "__main__":
    sys.exit(main())
