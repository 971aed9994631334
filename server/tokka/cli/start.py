"""`tokka serve` and `tokka worker` up to their event loop: settings, logging, sockets; failures become one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from tokka.cli.listener import bound
from tokka.cli.open_files import raise_open_files
from tokka.engine.factory import embedder_factory, engine_factory
from tokka.engine.supervision.processes import end_resource_tracker
from tokka.errors import StartupError
from tokka.fleet.file import read_fleet_file
from tokka.observability.log_writer import LineWriter
from tokka.observability.logging import configure_logging
from tokka.settings import (
    Settings,
    exposed_files,
    load_settings,
    unknown_variables,
    variable_of,
    visible_options,
    with_secrets,
)
from tokka.suggestions import did_you_mean

if TYPE_CHECKING:
    from tokka.app import Server

log = structlog.get_logger("tokka.serve")

_STDERR = 2
# Maximum unknown variables that get a suggestion.
_MOST_NAMED = 5


def run(flags: dict[str, Any], config: Path | None) -> int:
    """Serve until stopped. Return the exit code. Print a start-up failure as one line on stderr."""
    return launch(flags, config, _serve)


def launch(flags: dict[str, Any], config: Path | None, work: Callable[[Settings, LineWriter], int]) -> int:
    """Load the settings, set up the process and do its work. Return the exit code; print a failure as one line."""
    debug = flags.get("log_level") == "debug"
    _occupy_standard_files()
    try:
        settings = with_secrets(load_settings(flags, config))
        debug = settings.log_level == "debug"
        with _surroundings(settings) as lines:
            _warn_of_exposed_secrets(settings, flags)
            _warn_of_unknown_variables()
            raise_open_files()
            return work(settings, lines)
    except StartupError as error:
        if debug:
            traceback.print_exc()
        print(f"tokka: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())[:500]
        print(f"tokka: unexpected {type(error).__name__}: {reason}; --log-level debug shows more", file=sys.stderr)
        return 1


def _serve(settings: Settings, lines: LineWriter) -> int:
    create = _creator(settings)
    with bound(settings) as listeners:
        # Import late: the web framework takes longer to import than all checks before.
        import uvloop

        from tokka.cli.serve import serve

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(settings, create, listeners, lines))


def _creator(settings: Settings) -> Callable[[], Server]:
    """Return what builds the server, after the checks that need no web framework. Raises StartupError."""
    if settings.fleet is not None:
        file = read_fleet_file(settings.fleet)

        def gateway() -> Server:
            from tokka.app import create_gateway

            return create_gateway(settings, file)

        return gateway
    create_engine, create_embedder = engine_factory(settings), embedder_factory(settings)

    def server() -> Server:
        from tokka.app import create_server

        return create_server(settings, create_engine, create_embedder)

    return server


@contextlib.contextmanager
def _surroundings(settings: Settings) -> Iterator[LineWriter]:
    """Set up logging. At the end, write the last log lines and end multiprocessing's resource tracker."""
    lines = configure_logging(settings.log_format, settings.log_level)
    try:
        yield lines
    finally:
        lines.finish()
        end_resource_tracker()


def _occupy_standard_files() -> None:
    """Open /dev/null for each standard file that the caller has closed.

    Otherwise a socket would get the file's number, and the log would go to the socket.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)


def _warn_of_exposed_secrets(settings: Settings, flags: dict[str, Any]) -> None:
    """Warn about secrets that other users of this machine can read."""
    if options := visible_options(flags):
        remedy = f"give {', '.join(f'{option}-file' for option in options)} instead"
        log.warning("secrets_in_process_list", options=options, remedy=remedy)
    if options := exposed_files(settings):
        log.warning("secret_files_readable_by_all", options=options, remedy="chmod 600 these files")


def _warn_of_unknown_variables() -> None:
    """Warn about unknown `TOKKA_` variables. One may be a mistyped setting."""
    if names := unknown_variables():
        known = [variable_of(name) for name in Settings.model_fields]
        meant = "".join(did_you_mean(name, known) for name in names[:_MOST_NAMED])
        log.warning("unknown_variables", variables=names, remedy=f"see docs/settings.md for the names{meant}")
