"""/v1/responses: create, read and delete responses."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from tokka.accounts.responses import Kept
from tokka.api.deps import (
    Call,
    CurrentCall,
    CurrentKey,
    CurrentServices,
    documented_body,
    documented_query,
    json_response,
    query_of,
)
from tokka.api.document import RESPONSES_RESPONSES, errors
from tokka.api.respond import GenerationResponse
from tokka.api.wire import Wire
from tokka.core import ANONYMOUS
from tokka.dispatch.last_response import LastResponse
from tokka.engine.base import Sink
from tokka.protocol import sse
from tokka.protocol.chunks import Encoder
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.responses.compaction import CompactionEncoder, CompactRequest
from tokka.protocol.responses.create_event import ResponseCreate
from tokka.protocol.responses.encoder import ResponsesEncoder
from tokka.protocol.responses.listing import ItemsQuery, ReadQuery, page_of
from tokka.protocol.responses.models import CompactedResponse, DeletedResponse, InputTokens, ItemList, ResponseObject
from tokka.protocol.responses.request import ResponsesRequest
from tokka.protocol.responses.resource import ResponseForm


class _StoredResponse(StringConvertor):
    """The id of a stored response in a path: any text that is not the name of another path."""

    regex = "(?!(?:input_tokens|compact)(?:/|$))[^/]+"


register_url_convertor("stored_response", _StoredResponse())
router = APIRouter(tags=["generate"])
stored = APIRouter(tags=["generate"])
_EXAMPLE: dict[str, Any] = {
    "model": "SmolLM2-135M-Instruct",
    "input": "What is the capital of Finland?",
    "max_output_tokens": 64,
}


def _tenant_of(call: Call) -> str:
    return (call.record.key or ANONYMOUS).tenant


def _last_of(call: Call) -> LastResponse | None:
    """Return the last response of the WebSocket that a request came over."""
    last: LastResponse | None = call.scope["state"].get("last_response")
    return last


async def _resolved(call: Call, parsed: ParsedGeneration[ResponseForm]) -> ParsedGeneration[ResponseForm]:
    return await call.services.conversations.resolve(parsed, _tenant_of(call), _last_of(call))


class ContinuingGeneration(GenerationResponse[ResponseForm]):
    """A generation that may continue a stored conversation."""

    async def _resolve(self, parsed: ParsedGeneration[ResponseForm]) -> ParsedGeneration[ResponseForm]:
        return await _resolved(self._call, parsed)


class StoredGeneration(ContinuingGeneration):
    """A generation that is stored at its end."""

    def _answer(self, parsed: ParsedGeneration[ResponseForm], send: Send, wire: Wire) -> Coroutine[Any, Any, None]:
        return self._start(parsed, send) if parsed.form.background else super()._answer(parsed, send, wire)

    async def _start(self, parsed: ParsedGeneration[ResponseForm], send: Send) -> None:
        """Generate in the background. The response goes on if the client disconnects."""
        services, record = self._call.services, self._record
        run = await services.background.start(parsed, record, self._call.allowance, _tenant_of(self._call))
        # The run counts the generation and settles its allowance. No await between `start` and this.
        record.endpoint, self._call.scope["state"]["allowance"] = "", None
        is_stream = parsed.form.stream
        # A stream may stay open for long. It does not need the input.
        del parsed
        if not is_stream:
            answer = await json_response(run.queued)
            await send({"type": "http.response.start", "status": 200, "headers": answer.raw_headers})
            await send({"type": "http.response.body", "body": answer.body})
            return
        await send({"type": "http.response.start", "status": 200, "headers": sse.HEADERS})
        kept = Kept(run.queued, [])
        async for data in await services.background.follow(kept, _tenant_of(self._call), -1, services.keep_alive_s):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _sink(self, sink: Sink, encoder: Encoder) -> Sink:
        assert isinstance(encoder, ResponsesEncoder)
        return self._call.services.conversations.keeping(sink, encoder, _tenant_of(self._call), _last_of(self._call))


@router.post(
    "/v1/responses",
    summary="Answer a conversation, as items and events",
    responses=RESPONSES_RESPONSES,
    openapi_extra=documented_body(ResponsesRequest, _EXAMPLE),
)
async def create_response(call: CurrentCall) -> Response:
    model = ResponsesRequest if _last_of(call) is None else ResponseCreate
    return StoredGeneration(call, model, ResponsesEncoder)


@router.post(
    "/v1/responses/compact",
    summary="Summarise a conversation, to go on with the summary as input",
    responses={200: {"model": CompactedResponse}, **errors(400, 401, 403, 404, 413, 415, 429, 503, 504)},
    openapi_extra=documented_body(CompactRequest, {"model": "SmolLM2-135M-Instruct", "input": "Moi!"}),
)
async def compact(call: CurrentCall) -> Response:
    return ContinuingGeneration(call, CompactRequest, CompactionEncoder)


@stored.post(
    "/v1/responses/input_tokens",
    summary="Count the tokens of a request for /v1/responses",
    responses={200: {"model": InputTokens}, **errors(400, 401, 403, 404, 413, 415, 429, 503)},
    openapi_extra=documented_body(ResponsesRequest, _EXAMPLE),
)
async def count_input_tokens(call: CurrentCall, request: Request) -> Response:
    asked = (await _resolved(call, await call.parse(ResponsesRequest, request.receive))).request
    tokens = await call.services.dispatcher.tokenize(asked.model, asked.prompts[0], call.record, call.allowance)
    return await json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})


@stored.get(
    "/v1/responses/{response_id:stored_response}",
    summary="Return a stored response, or its events",
    responses={**RESPONSES_RESPONSES, **errors(400, 401, 403, 404, 503)},
    openapi_extra=documented_query(ReadQuery),
)
async def read_response(
    response_id: str, query: Annotated[ReadQuery, query_of(ReadQuery)], services: CurrentServices, key: CurrentKey
) -> Response:
    kept = await services.conversations.find(key.tenant, response_id)
    if not query.stream:
        return await json_response((await services.background.current(kept, key.tenant)).response)
    after = -1 if query.starting_after is None else query.starting_after
    events = await services.background.follow(kept, key.tenant, after, services.keep_alive_s)
    return StreamingResponse(events, headers={name.decode(): value.decode() for name, value in sse.HEADERS})


@stored.post(
    "/v1/responses/{response_id:stored_response}/cancel",
    summary="End a response that runs in the background",
    responses={200: {"model": ResponseObject}, **errors(400, 401, 403, 404, 503)},
)
async def cancel_response(response_id: str, services: CurrentServices, key: CurrentKey) -> Response:
    kept = await services.conversations.find(key.tenant, response_id)
    return await json_response(await services.background.cancel(kept, key.tenant))


@stored.delete(
    "/v1/responses/{response_id:stored_response}",
    summary="Remove a stored response",
    responses={200: {"model": DeletedResponse}, **errors(401, 403, 404, 503)},
)
async def delete_response(response_id: str, services: CurrentServices, key: CurrentKey) -> Response:
    if services.background.running(response_id):
        await services.background.cancel(await services.conversations.find(key.tenant, response_id), key.tenant)
    await services.conversations.remove(key.tenant, response_id)
    return await json_response({"id": response_id, "object": "response", "deleted": True})


@stored.get(
    "/v1/responses/{response_id:stored_response}/input_items",
    summary="List the items of the conversation before a stored response",
    responses={200: {"model": ItemList}, **errors(400, 401, 403, 404, 503)},
    openapi_extra=documented_query(ItemsQuery),
)
async def list_input_items(
    response_id: str, query: Annotated[ItemsQuery, query_of(ItemsQuery)], services: CurrentServices, key: CurrentKey
) -> Response:
    kept = await services.conversations.find(key.tenant, response_id)
    return await json_response(page_of(kept.items, query))
