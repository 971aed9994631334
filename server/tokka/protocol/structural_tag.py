"""Structural tags: free text in which a trigger begins a tag whose content matches a schema. Both forms of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, Field, model_validator

from tokka.protocol.annotations import LooseSchema
from tokka.protocol.closing import closed
from tokka.protocol.common import WireModel, invalid, unsupported
from tokka.protocol.json_schema import MAX_SCHEMA_BYTES

MAX_TAGS = 64
MAX_TRIGGERS = 16
_MAX_MARK_CHARS = 256
# Maximum bytes of all schemas together, as text.
_MAX_BYTES = 256 * 1024
# Characters of a tag given as text: the schemas with their escapes, and the fields around them.
_MAX_TEXT_CHARS = 2 * _MAX_BYTES

_Mark = Annotated[str, Field(min_length=1, max_length=_MAX_MARK_CHARS)]
_End = Annotated[str, Field(max_length=_MAX_MARK_CHARS)]
_Triggers = Annotated[list[_Mark], Field(fail_fast=True, min_length=1, max_length=MAX_TRIGGERS)]


class Structure(WireModel):
    """A tag: `begin`, which starts with a trigger, then JSON that matches the schema, then `end`."""

    begin: _Mark
    schema_: LooseSchema | None = Field(None, alias="schema", description="Default: any JSON object.")
    end: _End


class TagContent(WireModel):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: LooseSchema


class Tag(WireModel):
    """A tag in the form of `triggered_tags`."""

    type: Literal["tag"] | None = None
    begin: _Mark
    content: TagContent
    end: _End


def _only_false(value: bool) -> bool:
    if value:
        raise unsupported("Only false is supported, because text around the tags is always free: leave it out")
    return value


_False = Annotated[bool, AfterValidator(_only_false), Field(json_schema_extra={"const": False})]


class TriggeredTags(WireModel):
    """Tags that triggers begin inside free text."""

    type: Literal["triggered_tags"]
    triggers: _Triggers
    tags: Annotated[list[Tag], Field(fail_fast=True, min_length=1, max_length=MAX_TAGS)]
    at_least_one: _False | None = None
    stop_after_first: _False | None = None


class StructuralTagFormat(WireModel):
    """Free text with tags in it: `structures` with `triggers`, or a `format`."""

    type: Literal["structural_tag"]
    structures: Annotated[list[Structure], Field(fail_fast=True, min_length=1, max_length=MAX_TAGS)] | None = None
    triggers: _Triggers | None = None
    format: TriggeredTags | None = None

    @model_validator(mode="after")
    def _is_one_of_the_forms(self) -> Self:
        if (self.format is None) == (self.structures is None) or (self.structures is None) != (self.triggers is None):
            raise invalid("Send either structures with triggers, or format")
        for at, tag in self._tags():
            if self._trigger_of(tag) is None:
                raise invalid("Input should start with one of the triggers", f".{at}.begin")
        if (size := sum(len(orjson.dumps(_schema_of(tag)).decode()) for _, tag in self._tags())) > _MAX_BYTES:
            raise invalid(f"The schemas may have at most {_MAX_BYTES} bytes together; these have {size}")
        return self

    def plain(self) -> list[dict[str, Any]]:
        """Return the tags as constraints have them."""
        return [
            {
                "trigger": self._trigger_of(tag),
                "begin": tag.begin,
                "schema": closed(_schema_of(tag)),
                "end": tag.end,
            }
            for _, tag in self._tags()
        ]

    def _tags(self) -> list[tuple[str, Structure | Tag]]:
        """Return the tags, each with its place."""
        if self.format is not None:
            return [(f"format.tags[{place}]", tag) for place, tag in enumerate(self.format.tags)]
        return [(f"structures[{place}]", tag) for place, tag in enumerate(self.structures or ())]

    def _trigger_of(self, tag: Structure | Tag) -> str | None:
        triggers: Sequence[str] = self.format.triggers if self.format is not None else self.triggers or ()
        return next((trigger for trigger in triggers if tag.begin.startswith(trigger)), None)


def _schema_of(tag: Structure | Tag) -> dict[str, Any]:
    schema = tag.content.json_schema if isinstance(tag, Tag) else tag.schema_
    return {"type": "object"} if schema is None else schema


def parsed_tag(value: Any) -> Any:
    """Parse a structural tag given as JSON text; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    if len(value) > _MAX_TEXT_CHARS + MAX_SCHEMA_BYTES:
        raise invalid(f"A structural tag may have at most {_MAX_TEXT_CHARS + MAX_SCHEMA_BYTES} characters")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise invalid(f"A structural tag given as a string must be JSON ({error})") from None
