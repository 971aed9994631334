"""Plain ASGI around every request: its id, its record, its log line, its key, and an answer whatever happens."""

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

from tokka.accounts.keys import KeyRing
from tokka.admission.allowance import Allowances
from tokka.api.errors import send_error
from tokka.api.rate_limits import rate_limit_headers
from tokka.core import ANONYMOUS, Key, KeyScope, Outcome, RequestRecord
from tokka.errors import BodyTooLarge, InternalError, InvalidRequest, PermissionDenied, SlowRequest, TokkaError
from tokka.observability.metrics import Metrics
from tokka.protocol.common import new_id

log = structlog.get_logger("tokka.access")

# What needs no key: probes must work from outside, and none of these says anything about users.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/version"})
# Nor does the chat page, which asks for a key itself; whatever it calls is guarded.
_PAGE, _PAGE_FILES = "/", "/ui/"
GENERATION_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
ADMIN = "/admin/"
# The same API by another address, for clients of Aitta.
ALIAS_ROOT = "/openai"
ALIAS = f"{ALIAS_ROOT}/v1/"
_REMEDY = " Call with a key made by `tokka keys create --scope admin`, or given by --admin-key."
_SLOWEST_BYTES_PER_S = 64 << 10
_REQUEST_ID = re.compile(r"^[!-~]{1,128}$")


class OpenAIAlias:
    """Outermost: from here on `/openai/v1/x` is `/v1/x`, to keys, logs and metrics, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(ALIAS):
            scope = {**scope, "path": scope["path"].removeprefix(ALIAS_ROOT)}
        await self._app(scope, receive, send)


class RequestContext:
    """Gives each request an id and a record, counts its one outcome, and writes its one access line."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, allowances: Allowances, count: Callable[[RequestRecord], None]
    ) -> None:
        """`count`: takes what a request has used, for the books."""
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
        if scope["method"] == "POST" and scope["path"] in GENERATION_PATHS:
            record.endpoint = scope["path"]
        state = scope.setdefault("state", {})
        state["record"] = record
        # Past all middleware, for a body that comes in pieces: none of it looks at them.
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
                ]
            await send(message)

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
            self._count(record)
        if record.settle:
            record.settle()
        fields: dict[str, object] = {
            "request_id": record.id,
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
        quiet = _is_open(scope["path"]) or scope["path"] == "/metrics"
        (log.debug if quiet else log.info)("request_finished", **fields)


def _outcome_of(status: int) -> Outcome:
    if status in (401, 403, 429, 503):
        return "rejected"
    if status == 504:
        return "timeout"
    return "invalid" if 400 <= status < 500 else "error"


class ErrorRenderer:
    """Answers with the error that was raised, if nothing has been sent yet. Nothing passes it but cancellation."""

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
            log.error("unexpected_error", request_id=record.id, path=scope["path"], exc_info=fault)
            if not started:
                message = f"The server had an error while processing your request (request id {record.id})."
                await send_error(send, InternalError(message), scope["path"])


class Authentication:
    """Deny by default: every path but probes and page needs a key, decided on the raw path alone."""

    def __init__(self, app: ASGIApp, keys: KeyRing, *, metrics_open: bool, admin_open: bool, local_only: bool) -> None:
        self._app = app
        self._keys = keys
        self._metrics_open = metrics_open
        self._admin_open = admin_open
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            state = scope["state"]
            state["record"].key = self._key_of(scope)
            if "on_authenticated" in state and not _is_open(scope["path"]):
                state["on_authenticated"](state["record"].key)
        await self._app(scope, receive, send)

    def _key_of(self, scope: Scope) -> Key:
        path = scope["path"]
        if _is_open(path):
            return ANONYMOUS
        if path == "/metrics" and self._metrics_open:
            return ANONYMOUS
        if not self._keys.is_protected:
            if self._local_only and not _is_local(Headers(scope=scope).get("host", "")):
                # A web page that made its own name point at this machine is no local client.
                raise PermissionDenied(
                    "Without a key this server answers to local names only. Call it by localhost or an address, "
                    "or make a key with `tokka keys create`."
                )
            if path == "/metrics":
                raise PermissionDenied(
                    "Metrics need a key here, and none is set up. Start with --metrics-open to open them."
                )
            # Any web page can make its reader's browser post to this machine; the browser says so.
            if path.startswith(ADMIN) and (not self._admin_open or "origin" in Headers(scope=scope)):
                raise PermissionDenied(
                    f"{ADMIN} needs a key here, and none is set up. Make one with `tokka keys create --scope admin`."
                )
            return ANONYMOUS
        # A browser asks first without credentials; CORS has answered already if it is meant to.
        key = self._keys.verify(Headers(scope=scope).get("authorization"), time.time())
        needed = _scope_for(path)
        if needed not in key.scopes:
            raise PermissionDenied(f"This key lacks the scope `{needed}`.{_REMEDY if needed == 'admin' else ''}")
        return key


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path == _PAGE or path.startswith(_PAGE_FILES)


def _scope_for(path: str) -> KeyScope:
    if path.startswith(ADMIN):
        return "admin"
    return "metrics" if path == "/metrics" else "inference"


def _is_local(host: str) -> bool:
    """Tell whether a Host header is an address or a name that no foreign site can have."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.startswith("["):
        return True
    name = name.rstrip(".").lower()
    return "." not in name or name.endswith(".localhost") or name.replace(".", "").isdigit()


class HeadAsGet:
    """Answer HEAD wherever there is GET: the same status and headers; uvicorn leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, with its refusal of a preflight in OpenAI's form."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        error = InvalidRequest("This origin, method or header may not call the server; see --cors-origin.")
        return JSONResponse(error.body(), response.status_code, {"vary": "Origin"})


class BodyLimit:
    """Bounds a body in size and time: by its declared length before a byte is read, else when it gets there."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        began_s = asyncio.get_running_loop().time()
        received = 0
        is_complete = False

        async def receive_bounded() -> Message:
            nonlocal received, is_complete
            if is_complete:
                # What comes now is the disconnect, whenever that is.
                return await receive()
            # A slow line is no attack, as long as it is steady.
            deadline_s = began_s + self._timeout_s + received / _SLOWEST_BYTES_PER_S
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                raise SlowRequest(f"The request's body was not complete after {deadline_s - began_s:.3g} s.") from None
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, receive_bounded, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self._max_bytes} bytes, the limit of this server.")
