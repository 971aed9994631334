"""Set up structured logs on stdout: events with fields, as JSON or as columns for people."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal, TextIO, cast

import orjson
import structlog

from tokka.observability.log_writer import LineWriter

_STDOUT = 1


def configure_logging(log_format: Literal["json", "console"] | None, level: str) -> LineWriter:
    """Log our events and libraries' records to stdout in one format. Start-up errors go to stderr, from elsewhere.

    Returns the writer. It never blocks; call `finish` on it before the program ends.
    """
    lines = LineWriter(_STDOUT)
    as_json = log_format == "json" or (log_format is None and not os.isatty(_STDOUT))
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
        if as_json
        else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    renderer: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=os.isatty(_STDOUT))]
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, lines)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer], foreign_pre_chain=shared
        )
    )
    # Libraries' records below warnings appear only with `--log-level debug`.
    logging.basicConfig(
        handlers=[handler], level=threshold if level == "debug" else max(threshold, logging.WARNING), force=True
    )
    return lines


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str).decode()
