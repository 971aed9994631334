"""Events of stored responses: of a whole one, and of one whose server has stopped. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tokka.errors import TokkaError
from tokka.protocol import sse
from tokka.protocol.responses.errors import error_fields
from tokka.protocol.responses.items import PlainItem
from tokka.protocol.responses.open_items import ItemEvents, OpenCall, OpenMessage, OpenReasoning

_BEGINNING: dict[str, Any] = {
    "status": "in_progress",
    "output": [],
    "usage": None,
    "completed_at": None,
    "incomplete_details": None,
    "error": None,
}
_ENDS = tuple(f"event: response.{kind}\n".encode() for kind in ("completed", "failed", "incomplete"))


def replayed(response: dict[str, Any]) -> list[bytes]:
    """Return the events of a whole response. Each item has one event with its text."""
    return _numbered(_events(response), 0)


def interrupted(response: dict[str, Any], number: int, error: TokkaError) -> tuple[dict[str, Any], list[bytes]]:
    """Return a response as a failed one, and its last events. `number`: the number of the first of them."""
    fields = error_fields(error)
    failed = {**response, "status": "failed", "error": {"code": fields["code"], "message": fields["message"]}}
    return failed, _numbered([("error", fields), ("response.failed", {"response": failed})], number)


def end_event(response: dict[str, Any], number: int) -> bytes:
    """Return the last event of a response's stream, with this number."""
    (event,) = _numbered([(_end_kind(response), {"response": response})], number)
    return event


def is_end(event: bytes) -> bool:
    """Return whether an event ends the stream of a response."""
    return event.startswith(_ENDS)


def _numbered(events: Iterable[tuple[str, dict[str, Any]]], first: int) -> list[bytes]:
    return [
        sse.event({"type": kind, "sequence_number": number, **fields}, kind)
        for number, (kind, fields) in enumerate(events, first)
    ]


def _end_kind(response: dict[str, Any]) -> str:
    return {"completed": "response.completed", "failed": "response.failed"}.get(
        response["status"], "response.incomplete"
    )


def _events(response: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    beginning = {**response, **_BEGINNING}
    yield "response.created", {"response": beginning}
    yield "response.in_progress", {"response": beginning}
    for place, item in enumerate(response["output"]):
        for kind, fields in _events_of(item, place):
            yield kind, {"output_index": place, **fields}
    yield _end_kind(response), {"response": response}


def _events_of(item: PlainItem, place: int) -> ItemEvents:
    if item["type"] == "function_call":
        call = OpenCall(item["id"], item["name"], item.get("namespace"), item["call_id"])
        return [*call.opened(), *call.add(item["arguments"], {}), *call.closed(item["status"])]
    (part,) = item["content"]
    if item["type"] == "reasoning":
        reasoning = OpenReasoning(item["id"])
        return [*reasoning.opened(), *reasoning.add(part["text"], {}), *reasoning.closed(item["status"])]
    message = OpenMessage(item["id"], place)
    return [*message.opened(), *message.add(part["text"], part["logprobs"], {}), *message.closed(item["status"])]
