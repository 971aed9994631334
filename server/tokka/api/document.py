"""The OpenAPI document, with every response and every error that an endpoint can give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from threading import Lock
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tokka import __version__
from tokka.api.path_facts import DOCUMENT, PathFacts, facts_of
from tokka.api.paths import ALIAS, ALIAS_ROOT
from tokka.protocol.admin import NewKeyRequest, RotateRequest
from tokka.protocol.aitta import OAuthError
from tokka.protocol.anthropic.models import (
    AnthropicErrorBody,
    AnthropicEvent,
    AnthropicMessageObject,
    AnthropicModel,
    AnthropicModelList,
)
from tokka.protocol.anthropic.request import CountTokensRequest, MessagesRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.embeddings import EmbeddingRequest
from tokka.protocol.models import DetokenizeRequest, TokenizeRequest
from tokka.protocol.response_models import ChatCompletion, ChatCompletionChunk, Completion, ErrorBody
from tokka.protocol.responses.compaction import CompactRequest
from tokka.protocol.responses.models import ResponseEvent, ResponseObject
from tokka.protocol.responses.request import ResponsesRequest
from tokka.protocol.scores import RerankRequest, ScoreRequest

_REF = "#/components/schemas/"
# Models that no handler signature names: our own code parses bodies and builds responses as bytes.
_MODELS: list[type[BaseModel]] = [
    ChatRequest,
    CompletionRequest,
    MessagesRequest,
    CountTokensRequest,
    ResponsesRequest,
    CompactRequest,
    TokenizeRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    NewKeyRequest,
    RotateRequest,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    AnthropicMessageObject,
    AnthropicEvent,
    AnthropicModel,
    AnthropicModelList,
    ResponseObject,
    ResponseEvent,
    ErrorBody,
    AnthropicErrorBody,
    OAuthError,
]
_MEANING = {
    400: "The request is invalid; `param` names the field",
    401: "No valid API key",
    403: "The key, or a request without a key, may not do this",
    404: "The model, key or URL was not found",
    408: "The body took too long to arrive",
    413: "The body is larger than the server's limit",
    415: "The body is not JSON, or is compressed",
    429: "A limit of the key is reached. Retry after the time in `Retry-After`",
    431: "The request line and headers are larger than the server's limit",
    500: "The server or the engine failed",
    503: "Not available now: starting, draining, overloaded or in a downtime. Retry after the time in `Retry-After`",
    504: "The time limit of the request or the server passed before the response began",
}
_DESCRIPTION = """OpenAI's API for text, served by vLLM.

Every error has the body `{"error": {"message", "type", "param", "code"}}`. In a downtime, `details` holds its times. In
a stream, an error after the first byte is one event with that body, followed by `[DONE]`. The paths tagged `aitta` are
Aitta's API and return its errors, `{"error", "error_description", "details"}`. `/v1/messages` is Anthropic's API: it
also takes the key as `x-api-key`, and returns the errors `{"type": "error", "error": {"type", "message"}}`."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these error statuses; 500 is always included."""
    return {status: _json(_MEANING[status], ErrorBody) for status in sorted({*statuses, 500})}


def oauth_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses as `errors` does, with the error body of OAuth."""
    return {status: _json(_MEANING[status], OAuthError) for status in sorted({*statuses, 500})}


def anthropic_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses as `errors` does, with Anthropic's error body."""
    return {status: _json(_MEANING[status], AnthropicErrorBody) for status in sorted({*statuses, 500})}


def _json(description: str, model: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _REF + model.__name__}}}}


def _generation(
    plain: type[BaseModel], chunk: type[BaseModel], end: str = "`data: [DONE]`"
) -> dict[int | str, dict[str, Any]]:
    answer = _json(f"The response; with `stream: true` its chunks as events, ended by {end}", plain)
    answer["content"]["text/event-stream"] = {"schema": {"$ref": _REF + chunk.__name__}}
    return {200: answer, **errors(400, 401, 403, 404, 413, 415, 429, 503, 504)}


CHAT_RESPONSES = _generation(ChatCompletion, ChatCompletionChunk)
MESSAGES_RESPONSES = {
    **_generation(AnthropicMessageObject, AnthropicEvent, "`message_stop`"),
    **anthropic_errors(400, 401, 403, 404, 413, 415, 429, 503, 504),
}
RESPONSES_RESPONSES = _generation(ResponseObject, ResponseEvent)
COMPLETION_RESPONSES = _generation(Completion, Completion)


def document_of(app: FastAPI, root_path: str) -> Callable[[], dict[str, Any]]:
    """Return a function that builds the document once. Its first call blocks for 0.4 s.

    `root_path`: the prefix under which a proxy publishes the server.
    """
    building = Lock()

    def build() -> dict[str, Any]:
        with building:
            if app.openapi_schema is None:
                app.openapi_schema = _build(app, root_path)
            return app.openapi_schema

    return build


def document_route(app: FastAPI) -> Route:
    """Return the document's route. FastAPI's own route would build the document on the event loop."""

    async def document(_: Request) -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(app.openapi))

    return Route(DOCUMENT, document, include_in_schema=False)


def _build(app: FastAPI, root_path: str) -> dict[str, Any]:
    document = get_openapi(title="Tokka", version=__version__, description=_DESCRIPTION, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF + "{model}")
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # Optional: a server without keys needs none.
    document["security"] = [{"key": []}, {}]
    if root_path:
        document["servers"] = [{"url": root_path}]
    _correct(document, root_path)
    return document


def _error_model(facts: PathFacts) -> type[BaseModel]:
    if facts.speaks_anthropic:
        return AnthropicErrorBody
    return OAuthError if facts.speaks_oauth else ErrorBody


def _correct(document: dict[str, Any], root_path: str) -> None:
    """Remove responses that FastAPI adds and this server never gives; add errors that any request may get."""
    for path, operations in document["paths"].items():
        # Errors raised before the request is routed.
        facts = facts_of(path)
        early = [431] if facts.is_probe else [431, 503]
        error = _error_model(facts)
        for operation in operations.values():
            if facts.is_probe:
                operation["security"] = []
            if f"{ALIAS_ROOT}{path}".startswith(ALIAS):
                operation["servers"] = [{"url": root_path or "/"}, {"url": root_path + ALIAS_ROOT}]
            # Our own validation answers 400.
            operation["responses"].pop("422", None)
            for status in [*early, 408] if "requestBody" in operation else early:
                operation["responses"].setdefault(str(status), _json(_MEANING[status], error))
    schemas = document["components"]["schemas"]
    while unused := [name for name in schemas if f'"{_REF}{name}"' not in json.dumps(document)]:
        for name in unused:
            del schemas[name]
