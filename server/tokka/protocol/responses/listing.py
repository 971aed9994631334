"""Queries of stored responses, and pages of a list of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tokka.protocol.common import OpenModel
from tokka.protocol.responses.items import PlainItem

_ItemId = Annotated[str, Field(max_length=256)]


class ReadQuery(OpenModel):
    """The query of GET /v1/responses/{response_id}. Unknown parameters are ignored."""

    stream: Annotated[bool, Field(strict=False)] = Field(False, description="Return the response's events.")
    starting_after: Annotated[int, Field(strict=False, ge=0, le=2**53 - 1)] | None = Field(
        None, description="With stream: the `sequence_number` of the last event that the client has."
    )


class ItemsQuery(OpenModel):
    """The query of GET /v1/responses/{response_id}/input_items. Unknown parameters are ignored."""

    limit: Annotated[int, Field(strict=False, ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: _ItemId | None = Field(None, description="The last id of the previous page.")


def page_of(items: Sequence[PlainItem], query: ItemsQuery) -> dict[str, Any]:
    """Return a page of the items, newest first by default. An unknown `after` gives an empty page."""
    ordered = list(items) if query.order == "asc" else list(reversed(items))
    start = 0
    if query.after is not None:
        start = next((at + 1 for at, item in enumerate(ordered) if item.get("id") == query.after), len(ordered))
    page = ordered[start : start + query.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0].get("id") if page else None,
        "last_id": page[-1].get("id") if page else None,
        "has_more": start + query.limit < len(ordered),
    }
