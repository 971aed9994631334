"""ASGI middleware around every request: its id, record, limits, access log line and error response."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from tokka.admission.allowance import Allowances
from tokka.admission.memory import MemoryBudget, Share
from tokka.api.errors import send_error
from tokka.api.path_facts import METRICS, facts_of
from tokka.api.rate_limits import rate_limit_headers
from tokka.core import ANONYMOUS, Outcome, RequestRecord
from tokka.dispatch.ending import finish
from tokka.errors import BodyTooLarge, InternalError, InvalidRequest, SlowRequest, TokkaError
from tokka.observability.metrics import Metrics
from tokka.protocol.common import new_id

log = structlog.get_logger("tokka.access")

_SLOWEST_BYTES_PER_S = 64 << 10
_FIELD_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
_MAX_NAMED_FIELDS = 32
_REQUEST_ID = re.compile(r"^[!-~]{1,128}$")


class RequestContext:
    """Give each request an id and a record, count its one outcome, and write its one access log line."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, allowances: Allowances, count: Callable[[RequestRecord], None]
    ) -> None:
        """`count`: records the usage of a request."""
        self._app = app
        self._metrics = metrics
        self._allowances = allowances
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(id=given if _REQUEST_ID.match(given) else new_id("req_"), arrived_s=time.monotonic())
        if scope["method"] == "POST" and facts_of(scope["path"]).is_generation:
            record.endpoint = scope["path"]
        state = scope.setdefault("state", {})
        state["record"] = record
        # Bypasses all middleware for the pieces of a response body, which no middleware reads.
        state["write"] = send
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = round((time.monotonic() - record.arrived_s) * 1000)
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", record.id.encode()),
                    (b"openai-processing-ms", str(elapsed_ms).encode()),
                    *self._rate_limits(record),
                    *_ignored_header(record),
                ]
            await send(message)

        # Adds the id to every log line of the request.
        with bound_contextvars(request_id=record.id):
            try:
                await self._app(scope, receive, send_with_headers)
            except asyncio.CancelledError:
                record.outcome = record.outcome or "aborted"
                raise
            finally:
                self._finish(scope, record, status)

    def _rate_limits(self, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        return rate_limit_headers(self._allowances.gauges(record.key, time.monotonic())) if record.key else []

    def _finish(self, scope: Scope, record: RequestRecord, status: int) -> None:
        now_s = time.monotonic()
        if record.endpoint:
            record.outcome = record.outcome or _outcome_of(status)
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
        if record.prompt is not None:
            fields["prompt"] = record.prompt
        # Probes and scrapes come every few seconds and say nothing new.
        quiet = facts_of(scope["path"]).is_open or scope["path"] == METRICS
        (log.debug if quiet else log.info)("request_finished", **fields)


def _ignored_header(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    """Return the header that names the ignored fields of a body."""
    names = [name for name in record.ignored.names if _FIELD_NAME.match(name)][:_MAX_NAMED_FIELDS]
    return [(b"x-tokka-ignored-fields", ", ".join(names).encode())] if names else []


def _outcome_of(status: int) -> Outcome:
    if status in (401, 403, 429, 503):
        return "rejected"
    if status == 504:
        return "timeout"
    return "invalid" if 400 <= status < 500 else "error"


class ErrorRenderer:
    """Send a raised error as the response, if none has started. Only cancellation passes through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientDisconnect:
            record.outcome = "aborted"
        except TokkaError as error:
            record.reason = error.code
            if not started:
                await send_error(send, error, scope["path"])
        except Exception as fault:
            record.outcome, record.reason = "error", type(fault).__name__
            log.error("unexpected_error", path=scope["path"], exc_info=fault)
            if not started:
                message = f"The server had an error while processing your request (request id {record.id})."
                await send_error(send, InternalError(message), scope["path"])


class HeadAsGet:
    """Answer HEAD like GET, with the same status and headers. uvicorn omits the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with refused preflights in OpenAI's error form."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        error = InvalidRequest("The origin, method or header of this preflight is not allowed; see --cors-origin.")
        return JSONResponse(error.body(), response.status_code, {"vary": "Origin"})


class KeyLimits:
    """Count a request against the limits of its key. At a limit, the request is refused before its body is read."""

    def __init__(self, app: ASGIApp, allowances: Allowances) -> None:
        self._app = app
        self._allowances = allowances

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and facts_of(scope["path"]).is_counted:
            key = scope["state"]["record"].key or ANONYMOUS
            scope["state"]["allowance"] = self._allowances.open(key, time.monotonic())
        await self._app(scope, receive, send)


class BodyLimit:
    """Limit the size and time of each body, and the memory of all bodies together.

    A declared length is checked before a byte is read.
    """

    def __init__(self, app: ASGIApp, max_bytes: Callable[[], int], timeout_s: float, memory: MemoryBudget) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, self._max_bytes(), self._timeout_s, self._memory)
        # The endpoint releases the memory once the body has been parsed.
        scope["state"]["body_memory"] = body.memory
        try:
            await self._app(scope, body.reader(receive), send)
        finally:
            body.memory.release()


class _Body:
    """One body while it is received."""

    def __init__(self, scope: Scope, max_bytes: int, timeout_s: float, budget: MemoryBudget) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self.memory = Share(budget, scope["state"]["record"].tenant)
        self._began_s = asyncio.get_running_loop().time()
        self._received = 0
        self._is_complete = False
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit():
            self._check(int(declared))

    def reader(self, receive: Receive) -> Receive:
        async def receive_bounded() -> Message:
            if self._is_complete:
                # Only a disconnect can follow, at any time.
                return await receive()
            # A slow but steady upload is not an attack, so received bytes extend the deadline.
            deadline_s = self._began_s + self._timeout_s + self._received / _SLOWEST_BYTES_PER_S
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                seconds = f"{deadline_s - self._began_s:.3g} s"
                raise SlowRequest(
                    f"The request body was not complete after {seconds}. Send it faster, or send a smaller one."
                ) from None
            self._is_complete = not message.get("more_body", False)
            self._received += len(message.get("body", b""))
            self._check(self._received)
            return message

        return receive_bounded

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(
                f"The request body is larger than {self._max_bytes} bytes, the limit of this server. Send less."
            )
        self.memory.grow_to(size)
