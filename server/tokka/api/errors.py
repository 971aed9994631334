"""Error bodies: exceptions become OpenAI's form, OAuth's on the paths of Aitta's API, or Anthropic's on its paths."""

from __future__ import annotations

from typing import Any, NoReturn

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Send

from tokka.api.path_facts import facts_of
from tokka.api.paths import meant
from tokka.errors import InternalError, MethodNotAllowed, TokkaError, UnknownUrl
from tokka.protocol.anthropic.errors import error_body


def body_of_error(error: TokkaError, path: str, request_id: str) -> bytes:
    facts = facts_of(path)
    if facts.speaks_anthropic:
        return orjson.dumps(error_body(error, request_id))
    return orjson.dumps(error.oauth_body() if facts.speaks_oauth else error.body())


def request_id_headers(request_id: str, path: str) -> list[tuple[bytes, bytes]]:
    """Return the headers with the request's id. Anthropic's clients read it under another name."""
    value = request_id.encode()
    headers = [(b"x-request-id", value)]
    if facts_of(path).speaks_anthropic:
        headers.append((b"request-id", value))
    return headers


async def send_error(send: Send, error: TokkaError, path: str, request_id: str) -> None:
    """Send the error as the response. Call it only before the first byte of a response."""
    body = body_of_error(error, path, request_id)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def raise_routing_error(request: Request, exception: Exception) -> Any:
    """Raise our own error for the router's 404 or 405; `Endpoints` renders it."""
    if isinstance(exception, HTTPException):
        path = request.scope["path"][:200]
        if exception.status_code == 404:
            known = (route.path for route in request.app.routes if isinstance(route, Route))
            hint = f" Did you mean {right}?" if (right := meant(path, known)) else ""
            raise UnknownUrl(f"Unknown request URL: {request.method} {path}.{hint} The API is described at /docs.")
        if exception.status_code == 405:
            allow = ", ".join(_methods(request))
            raise MethodNotAllowed(
                f"Not allowed to {request.method} on {path}. Use {allow or 'another method'}.", allow
            )
    raise InternalError("The server had an error while processing your request.") from exception


async def raise_again(_: Request, exception: Exception) -> NoReturn:
    """Raise the error that FastAPI would answer with a text of its own; `Endpoints` renders it."""
    raise exception


def _methods(request: Request) -> list[str]:
    """Return the methods of all routes on this path, since a route knows only its own."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    # GET on /v1/responses serves upgrades only, and is not documented.
    routes = [route for route in routes if getattr(route, "include_in_schema", False)] or routes
    methods = {method for route in routes for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
