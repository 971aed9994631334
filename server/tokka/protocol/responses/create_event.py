"""The messages of a WebSocket at /v1/responses: requests, and refusals of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tokka.protocol.common import invalid, unsupported
from tokka.protocol.responses.request import ResponsesRequest
from tokka.protocol.responses.resource import ResponseForm


class ResponseCreate(ResponsesRequest):
    """A message that asks for a response: the body of POST /v1/responses with a type. It always gets events."""

    type: Literal["response.create"]
    # Some clients send `true`.
    stream: bool | None = Field(True, description="Events are always sent.")
    generate: bool | None = Field(None, description="false is not supported.")

    @model_validator(mode="after")
    def _is_for_a_websocket(self) -> Self:
        if self.stream is False:
            raise invalid("A WebSocket always gets events: leave stream out", "stream")
        if self.background:
            raise invalid("A response in the background needs POST /v1/responses", "background")
        if self.generate is False:
            raise unsupported("A response without generation is not supported: leave generate out", "generate")
        return self

    def form(self) -> ResponseForm:
        return replace(super().form(), stream=True)


def refusal_event(status: int, error: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the event for a request that got no response. `headers`: those that HTTP would have sent."""
    known = {**error, "code": error["code"] or error["type"], "headers": dict(headers)}
    return {"type": "error", "status": status, "error": known}
