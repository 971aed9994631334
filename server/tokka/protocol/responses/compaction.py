"""POST /v1/responses/compact: the model writes a summary of a conversation, which stands for it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tokka.core import ChatPrompt, Event, Finished, GenerateRequest, IgnoredFields, Sampling, TextDelta
from tokka.protocol import sse
from tokka.protocol.chunks import Encoder, Fold
from tokka.protocol.common import BodyModel, Text, invalid, new_id, now_s
from tokka.protocol.common_fields import Model
from tokka.protocol.folding import Piece, dumps
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.responses.conversation import images_of, messages_of, with_instructions
from tokka.protocol.responses.items import Input, MessageItem, PlainItem, plain_items, sealed, unknown_fields
from tokka.protocol.responses.resource import ResponseForm, new_response_id, usage_object

# Maximum tokens of a summary, if the context has room for them.
_SUMMARY_TOKENS = 2048
_TASK = (
    "Summarise this conversation for a reader who continues it. Keep every fact, decision, name, number, file and open"
    " task. Write only the summary."
)


class CompactRequest(BodyModel):
    """The body of POST /v1/responses/compact."""

    model: Model
    input: Input | None = Field(None, description="The conversation, as text or items.")
    instructions: Text | None = Field(None, description="A system message before the conversation.")
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None

    @model_validator(mode="after")
    def _has_a_conversation(self) -> Self:
        if not self.input and self.previous_response_id is None:
            raise invalid("The input is missing: send text or items", "input")
        return self

    @property
    def ignored(self) -> IgnoredFields:
        return IgnoredFields(super().ignored.names, unknown_fields(self.input))

    def parsed(self) -> ParsedGeneration[ResponseForm]:
        """Return the valid body as plain data."""
        items = (*plain_items(self.input), MessageItem(role="user", content=_TASK).plain())
        form = ResponseForm(
            model=self.model,
            stream=False,
            repeated={},
            instructions=self.instructions,
            items=items,
            previous_response_id=self.previous_response_id,
            store=False,
        )
        return ParsedGeneration(self._to_core(items), form, self.ignored)

    def _to_core(self, items: tuple[PlainItem, ...]) -> GenerateRequest:
        messages = tuple(with_instructions(self.instructions, messages_of(items)))
        return GenerateRequest(
            id=new_response_id(),
            model=self.model,
            prompts=(ChatPrompt(messages, images=images_of(items, "input")),),
            sampling=Sampling(default_max_tokens=_SUMMARY_TOKENS),
            prompt_param="input",
            limit_param="input",
        )


class CompactionEncoder(Encoder):
    """Encode the summary as a compaction. Reasoning is not part of it."""

    def __init__(self, form: ResponseForm, response_id: str, fingerprint: str) -> None:
        self._id = response_id
        self._created_at = now_s()
        self._texts: list[str] = []

    def feed(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextDelta(text=text):
                self._texts.append(text)
            case Finished(usage):
                item = {"type": "compaction", "id": new_id("cmp_"), "encrypted_content": sealed("".join(self._texts))}
                head = {"id": self._id, "object": "response.compaction", "created_at": self._created_at}
                return [{**head, "output": [item], "usage": usage_object(usage)}]
        return []

    def encode(self, event: Event) -> Iterable[bytes]:
        return map(sse.json_event, map(dumps, self.feed(event)))

    def fold(self) -> Fold:
        return _OneObject()


class _OneObject(Fold):
    """The only object of a response."""

    def __init__(self) -> None:
        self._value: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        self._value = chunk

    def pieces(self) -> list[Piece]:
        return [dumps(self._value)]
