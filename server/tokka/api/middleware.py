"""ASGI middleware around every request: its path, id, record and access log line; and CORS."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from tokka.admission.allowance import Allowances
from tokka.api.errors import request_id_headers
from tokka.api.headers import header
from tokka.api.path_facts import facts_of
from tokka.api.paths import served_path
from tokka.api.rate_limits import rate_limit_headers
from tokka.core import RequestRecord
from tokka.dispatch.ending import finish, outcome_of
from tokka.dispatch.prompt_log import prompt_fields
from tokka.errors import InvalidRequest
from tokka.observability.metrics import Metrics
from tokka.protocol.common import new_id

log = structlog.get_logger("tokka.access")

_FIELD_NAME = re.compile(r"^[A-Za-z0-9_.:-]{1,64}$")
_MAX_NAMED_FIELDS = 32
_REQUEST_ID = re.compile(r"^[!-~]{1,128}$")


class RequestContext:
    """Give each request an id and a record, count its one outcome, and write its one access log line."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        allowances: Allowances,
        count: Callable[[RequestRecord], None],
        root_path: str,
    ) -> None:
        """`count`: records the usage of a request. `root_path`: see `served_path`."""
        self._app = app
        self._metrics = metrics
        self._allowances = allowances
        self._count = count
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = served_path(scope["path"], self._root_path)
        if path != scope["path"]:
            scope = {**scope, "path": path}
        given = header(scope, b"x-request-id")
        record = RequestRecord(id=given if _REQUEST_ID.match(given) else new_id("req_"), arrived_s=time.monotonic())
        if scope["method"] == "POST" and facts_of(path).is_generation:
            record.endpoint = path
        scope.setdefault("state", {})["record"] = record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(record, path)]
            await send(message)

        # Adds the id to every log line of the request. A request may come inside the connection of another one.
        outer = bind_contextvars(request_id=record.id)
        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            record.outcome = record.outcome or "aborted"
            raise
        finally:
            self._finish(scope, record)
            reset_contextvars(**outer)

    def _headers(self, record: RequestRecord, path: str) -> list[tuple[bytes, bytes]]:
        now_s = time.monotonic()
        limits = rate_limit_headers(self._allowances.gauges(record.key, now_s)) if record.key else []
        return [
            *request_id_headers(record.id, path),
            (b"openai-processing-ms", b"%d" % round((now_s - record.arrived_s) * 1000)),
            *limits,
            *_ignored_header(record),
        ]

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        now_s, status = time.monotonic(), record.status
        if record.endpoint:
            record.outcome = record.outcome or outcome_of(status)
            self._metrics.observe(record, now_s)
        finish(record, scope["state"].get("allowance"), status, self._count)
        fields: dict[str, object] = {
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "tenant": record.tenant,
            "duration_s": round(now_s - record.arrived_s, 4),
        }
        if record.reason:
            fields["reason"] = record.reason
        if record.endpoint:
            fields |= {
                "model": record.model,
                "stream": record.stream,
                "outcome": record.outcome,
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.cached_tokens,
                "completion_tokens": record.completion_tokens,
                "ttft_s": None if record.first_token_s is None else round(record.first_token_s - record.arrived_s, 4),
            }
        if record.ignored.tools:
            fields["ignored_tools"] = [tool[:64] for tool in record.ignored.tools[:_MAX_NAMED_FIELDS]]
        fields |= prompt_fields(record)
        # Probes and scrapes come every few seconds and say nothing new.
        quiet = facts_of(scope["path"]).scope in (None, "metrics")
        (log.debug if quiet else log.info)("request_finished", **fields)


def _ignored_header(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    """Return the headers that name the ignored fields and tools of a body."""
    ignored = {b"x-tokka-ignored-fields": record.ignored.names, b"x-tokka-ignored-tools": record.ignored.tools}
    headers = []
    for name_of_header, names in ignored.items():
        if shown := [name for name in names if _FIELD_NAME.match(name)][:_MAX_NAMED_FIELDS]:
            headers.append((name_of_header, ", ".join(shown).encode()))
    return headers


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with refused preflights in OpenAI's error form."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        error = InvalidRequest("The origin, method or header of this preflight is not allowed; see --cors-origin.")
        return JSONResponse(error.body(), response.status_code, {"vary": "Origin"})
