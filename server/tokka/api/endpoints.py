"""Runs the endpoint of each request, after the checks that need only its headers. Renders every error.

FastAPI's own routing and dependencies take a sixth of the CPU of a short generation and 8 kB of memory for each open
stream. The routes of generations are therefore called directly; FastAPI documents them and refuses their other methods.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable

import structlog
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tokka.api.access import Authentication
from tokka.api.deps import Call, Services
from tokka.api.errors import send_error
from tokka.api.path_facts import facts_of
from tokka.core import ANONYMOUS, RequestRecord
from tokka.errors import InternalError, TokkaError

log = structlog.get_logger("tokka.access")

Generate = Callable[[Call], Awaitable[Response]]


def generate_endpoints(routers: Iterable[APIRouter]) -> dict[str, Generate]:
    """Return the endpoint of each path of these routers. All are POST, and their endpoints take a `Call` alone."""
    routes = (route for router in routers for route in router.routes if isinstance(route, APIRoute))
    return {route.path: route.endpoint for route in routes}


class Endpoints:
    """Authenticate a request, count it, limit its body, and run its endpoint.

    A raised error becomes the response, if none has started. Only cancellation passes through.
    """

    def __init__(
        self,
        routes: ASGIApp,
        generate: dict[str, Generate],
        services: Services,
        authentication: Authentication,
    ) -> None:
        """`routes`: all routes. `generate`: the endpoints to call without it, by path; see `generate_endpoints`."""
        self._routes = routes
        self._generate = generate
        self._services = services
        self._authentication = authentication
        self._body_limit = services.body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        state, path = scope["state"], scope["path"]
        record: RequestRecord = state["record"]
        try:
            await self._authentication.check(scope)
            is_post = scope["method"] == "POST"
            if is_post and facts_of(path).is_counted:
                # At a limit of its key, the request is refused before its body is read.
                state["allowance"] = self._services.allowances.open(record.key or ANONYMOUS, time.monotonic())
            body = self._body_limit.of(scope)
            # The endpoint releases the memory once the body has been parsed.
            state["body_memory"] = body.memory
            try:
                if is_post and (endpoint := self._generate.get(path)):
                    response = await endpoint(Call(self._services, record, state["allowance"], scope))
                    await response(scope, body.reader(receive), send)
                else:
                    await self._routes(_head_as_get(scope), body.reader(receive), send)
            finally:
                body.memory.release()
        except ClientDisconnect:
            record.outcome = "aborted"
        except Exception as error:
            await self._render(error, scope, record, send)

    @staticmethod
    async def _render(error: Exception, scope: Scope, record: RequestRecord, send: Send) -> None:
        if isinstance(error, TokkaError):
            record.reason = error.code
        else:
            record.outcome, record.reason = "error", type(error).__name__
            log.error("unexpected_error", path=scope["path"], exc_info=error)
            error = InternalError(f"The server had an error while processing your request (request id {record.id}).")
        if not record.status:
            await send_error(send, error, scope["path"], record.id)


def _head_as_get(scope: Scope) -> Scope:
    """Return the scope in which HEAD is GET: the same status and headers. uvicorn omits the body."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
