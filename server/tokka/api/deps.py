"""Dependencies of endpoints: the parsed body, the services, and the record of the request."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope

from tokka.accounts.accounts import Accounts
from tokka.admission.allowance import Allowance, Allowances
from tokka.api.body_limit import BodyLimit
from tokka.api.headers import header
from tokka.core import ANONYMOUS, Key, RequestRecord
from tokka.dispatch.background import Background
from tokka.dispatch.catalogue import Catalogue
from tokka.dispatch.conversations import Conversations
from tokka.dispatch.dispatcher import Dispatcher
from tokka.errors import InvalidRequest, UnsupportedMediaType
from tokka.fleet.fleet import Fleet
from tokka.observability.metrics import Metrics
from tokka.parsing.bodies import BodyParser, Parsable, Parsed
from tokka.protocol.common import MAX_FIELDS
from tokka.protocol.validation import Body, validated

T = TypeVar("T", bound=Parsed)


@dataclass(frozen=True, slots=True)
class Services:
    """The objects that `app.py` builds for the endpoints."""

    dispatcher: Dispatcher
    catalogue: Catalogue
    allowances: Allowances
    accounts: Accounts
    metrics: Metrics
    bodies: BodyParser
    started_s: int
    conversations: Conversations
    background: Background
    fingerprint: str
    keep_alive_s: float
    body_limit: BodyLimit
    # None without --fleet.
    fleet: Fleet | None
    # Seconds that a stream waits for a model without a replica, if its request does not say.
    hold_s: float
    # Starts the drain: refuse new requests, finish in-flight ones, stop.
    drain: Callable[[], None]


# Coroutines, although they never wait: FastAPI runs plain functions in a thread, which costs more than their work.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _record(request: Request) -> RequestRecord:
    record: RequestRecord = request.scope["state"]["record"]
    return record


async def _key(request: Request) -> Key:
    return (await _record(request)).key or ANONYMOUS


CurrentServices = Annotated[Services, Depends(_services)]
CurrentKey = Annotated[Key, Depends(_key)]


def body_of(model: type[Body]) -> Any:
    """Return a dependency that reads a small body as `model`, strictly, with errors in OpenAI's form."""

    async def parse(request: Request) -> Body:
        return validated(model, await read_body(request.scope, request.receive))

    return Depends(parse)


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose body has not been read yet."""

    services: Services
    record: RequestRecord
    allowance: Allowance
    scope: Scope

    async def parse(self, model: type[Parsable[T]], receive: Receive) -> T:
        """Read the body and return it as plain data.

        Raises UnsupportedMediaType, BodyTooLarge, SlowRequest, InvalidRequest, ServerOverloaded.
        """
        raw = await read_body(self.scope, receive)
        return await self.parse_raw(model, raw)

    async def parse_raw(self, model: type[Parsable[T]], raw: bytes) -> T:
        try:
            parsed = await self.services.bodies.parse(model, raw, self.record.tenant)
        finally:
            self.scope["state"]["body_memory"].release()
        self.record.ignored = parsed.ignored
        return parsed


async def _call(request: Request) -> Call:
    state = request.scope["state"]
    return Call(await _services(request), state["record"], state["allowance"], request.scope)


# One dependency for all of it: FastAPI takes 30 us of CPU for each one it resolves.
CurrentCall = Annotated[Call, Depends(_call)]


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return a JSON body's bytes. Raises UnsupportedMediaType, BodyTooLarge, SlowRequest, ServerOverloaded."""
    media_type = header(scope, b"content-type").partition(";")[0].strip().lower()
    # This also keeps foreign web pages out: a browser sends a preflight before JSON to another origin.
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as JSON with the header `Content-Type: application/json`.")
    if (encoding := header(scope, b"content-encoding", "identity").lower()) != "identity":
        raise UnsupportedMediaType(
            f"The `Content-Encoding` {encoding[:32]!r} is not supported. Send the body without compression."
        )
    pieces = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    # Windows programs begin files with a byte order mark.
    return b"".join(pieces).removeprefix(codecs.BOM_UTF8)


def query_of(model: type[Body]) -> Any:
    """Return a dependency that reads the URL's query as `model`, with the same errors as a body."""

    async def parse(request: Request) -> Body:
        # Lists, like OpenAI's `include[]`, change nothing here.
        given = [(name, value) for name, value in request.query_params.multi_items() if not name.endswith("[]")]
        if len(given) > MAX_FIELDS:
            raise InvalidRequest(f"A query may have at most {MAX_FIELDS} parameters; this one has {len(given)}.")
        counts = Counter(name for name, _ in given)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise InvalidRequest(f"'{twice[:64]}' is given more than once. Send it once.", param=twice[:64])
        return validated(model, json.dumps(dict(given)).encode())

    return Depends(parse)


async def json_response(value: object) -> Response:
    """Return a response whose JSON is made in a thread: encoding a million tokens takes 15 ms."""
    return Response(await asyncio.to_thread(orjson.dumps, value), media_type="application/json")


def documented_query(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI parameters of an endpoint that parses with `query_of`."""
    fields = model.model_json_schema()["properties"]
    return {"parameters": [{"in": "query", "name": name, "schema": schema} for name, schema in fields.items()]}


def documented_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI request body of an endpoint that parses with `body_of`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}
