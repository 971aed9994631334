"""What endpoints ask for: the parsed body, the services, and the record of the request."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from tokka.accounts.accounts import Accounts
from tokka.admission.allowance import Allowances
from tokka.admission.controller import AdmissionController
from tokka.api.errors import invalid_request
from tokka.core import ANONYMOUS, Key, RequestRecord
from tokka.dispatch import Dispatcher
from tokka.engine.supervisor import Supervisor
from tokka.errors import InvalidRequest, UnsupportedMediaType
from tokka.observability.metrics import Metrics

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Services:
    """The objects `app.py` built, as endpoints see them."""

    dispatcher: Dispatcher
    supervisor: Supervisor
    admission: AdmissionController
    allowances: Allowances
    accounts: Accounts
    metrics: Metrics
    names: tuple[str, ...]
    started_s: int
    fingerprint: str
    keep_alive_s: float
    log_prompts: bool
    # Starts the end of the server: refuse what is new, finish what runs, stop.
    drain: Callable[[], None]


# Coroutines, though they wait for nothing: FastAPI runs plain functions in a thread, which costs more than they do.
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
    """Return a dependency that reads the body as `model`, strictly, with errors in OpenAI's form."""
    return Depends(_parser_of(model))


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """All that a generation needs of its HTTP request."""

    body: Body
    services: Services
    record: RequestRecord


def call_of(model: type[Body]) -> Any:
    """Return a dependency that gives all of it at once: FastAPI takes 30 us of CPU for each one it resolves."""
    parse = _parser_of(model)

    async def call(request: Request) -> Call[Body]:
        return Call(await parse(request), await _services(request), await _record(request))

    return Depends(call)


def _parser_of(model: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    async def parse(request: Request) -> Body:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Also what keeps foreign web pages out: a browser asks before it sends JSON across origins.
        if media_type != "application/json":
            raise UnsupportedMediaType("Send the body as JSON with the header `Content-Type: application/json`.")
        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise UnsupportedMediaType(f"Send the body as it is: the encoding {encoding[:32]!r} is not supported.")
        return _valid(model, await request.body())

    return parse


def query_of(model: type[Body]) -> Any:
    """Return a dependency that reads the URL's query as `model`, with the same errors as a body's."""

    async def parse(request: Request) -> Body:
        given = request.query_params.multi_items()
        if twice := next((name for place, (name, _) in enumerate(given) if name in dict(given[:place])), None):
            raise InvalidRequest(f"'{twice[:64]}' is given twice.", param=twice[:64])
        return _valid(model, json.dumps(dict(given)).encode())

    return Depends(parse)


def _valid(model: type[Body], raw: bytes) -> Body:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_request(error, raw) from None


def documented_query(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI parameters of an endpoint that parses with `query_of`."""
    fields = model.model_json_schema()["properties"]
    return {"parameters": [{"in": "query", "name": name, "schema": schema} for name, schema in fields.items()]}


def documented_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI request body of an endpoint that parses with `body_of`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}
