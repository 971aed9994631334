"""From exceptions to an error's body, in one place: OpenAI's, and OAuth's where clients of Aitta ask."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import Send

from tokka.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    TokkaError,
    UnknownUrl,
    UnsupportedParameter,
)

# Aitta's API; see api/aitta.py.
_OAUTH_PATHS = re.compile(r"/(model|worker|status|downtimes|authenticate_with_key)(/|$)")
# An error names what is wrong; it does not send the request back.
_MAX_MESSAGE_CHARS = 1000


def speaks_oauth(path: str) -> bool:
    """Tell whether errors on this path have the body that OAuth (RFC 6749) gives them."""
    return _OAUTH_PATHS.match(path) is not None


def body_of_error(error: TokkaError, path: str) -> bytes:
    return orjson.dumps(error.oauth_body() if speaks_oauth(path) else error.body())


async def send_error(send: Send, error: TokkaError, path: str) -> None:
    """Answer with the error. Only before the first byte of a response."""
    body = body_of_error(error, path)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def raise_routing_error(request: Request, exception: Exception) -> Any:
    """Turn the router's own 404 and 405 into ours; the middleware renders them."""
    if isinstance(exception, HTTPException):
        path = request.scope["path"][:200]
        if exception.status_code == 404:
            raise UnknownUrl(f"Unknown request URL: {request.method} {path}. The API is described at /docs.")
        if exception.status_code == 405:
            allow = ", ".join(_methods(request))
            raise MethodNotAllowed(
                f"Not allowed to {request.method} on {path}. Use {allow or 'another method'}.", allow
            )
    raise InternalError("The server had an error while processing your request.") from exception


def _methods(request: Request) -> list[str]:
    """Return what may be done with this path: one route knows only of its own method."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in routes for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def invalid_request(error: ValidationError, raw: bytes) -> InvalidRequest:
    """Return the first thing wrong with a body as OpenAI would say it: the field's path, the reason, the remedy."""
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        reason = str(details[0].get("ctx", {}).get("error", "not JSON"))
        return InvalidRequest(f"We could not parse the JSON body of your request: {reason}.")
    body = json.loads(raw)
    if not isinstance(body, dict):
        return InvalidRequest("The body must be a JSON object.")
    # A union reports each of its branches; the one that got deepest below the first one's place was meant.
    walked = [(_walk(item, body), item) for item in details]
    place = walked[0][0]
    rivals = [(steps, item) for steps, item in walked if steps[: len(place)] == place]
    steps, meant = max(rivals, key=lambda rival: len(rival[0]))
    param = _path(steps, meant)
    return _explain(param, meant, [item for steps, item in rivals if _path(steps, item) == param])


def _path(steps: list[str | int], item: Any) -> str:
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    at: str = item.get("ctx", {}).get("at", "")
    if at and not at.startswith(("[", ".")):
        at = f".{at}"
    return (path + at).lstrip(".")


def _walk(item: Any, body: Any) -> list[str | int]:
    """Return the steps of an error's location that exist in the data: pydantic mixes names of union branches in."""
    here = body
    steps: list[str | int] = []
    for step in item["loc"]:
        if _has(here, step):
            here = here[step]
            steps.append(step)
    if item["type"] == "missing":
        steps.append(item["loc"][-1])
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        steps.append(item["ctx"]["discriminator"].strip("'"))
    return steps


def _has(here: Any, step: str | int) -> bool:
    if isinstance(here, dict):
        return isinstance(step, str) and step in here
    return isinstance(here, list) and isinstance(step, int) and step < len(here)


def _explain(param: str, first: Any, same: list[Any]) -> InvalidRequest:
    kind = first["type"]
    shown = param[:200]
    match kind:
        case "missing" | "union_tag_not_found":
            return InvalidRequest(f"Missing required parameter: '{shown}'.", param=shown)
        case "extra_forbidden":
            return InvalidRequest(
                f"Unrecognized request argument supplied: '{shown}'. See /docs for the known ones.", param=shown
            )
        case "none_required":
            return UnsupportedParameter(f"'{shown}' is not supported by this server yet. Leave it out.", param=shown)
        case "tokka_unsupported":
            return UnsupportedParameter(_cut(f"Invalid value for '{shown}': {first['msg']}."), param=shown)
        case "union_tag_invalid":
            return InvalidRequest(
                _cut(f"Invalid value for '{shown}': expected one of {first['ctx']['expected_tags']}."), param=shown
            )
    if not param:
        return InvalidRequest(_cut(f"Invalid body: {first['msg']}."))
    reasons = list(dict.fromkeys(item["msg"] for item in same))
    return InvalidRequest(_cut(f"Invalid value for '{shown}': {' or '.join(reasons)}."), param=shown)


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_CHARS else message[: _MAX_MESSAGE_CHARS - 1] + "…"
