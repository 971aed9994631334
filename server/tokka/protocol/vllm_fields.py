"""vLLM's request fields without effect here: their neutral values, and why other values are refused.

vLLM's clients often serialise fields that the user has not set. Null is neutral for every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tokka.protocol.common import WireModel, unsupported


@dataclass(frozen=True, slots=True)
class Neutral:
    """A field without effect here.

    `values`: values that mean the same as an absent field, besides null. `reason`: why other values are refused.
    `is_unknown`: treat other values as an unknown field, which is refused or ignored.
    """

    values: tuple[Any, ...]
    reason: str
    is_unknown: bool = False

    def holds(self, value: Any) -> bool:
        # In Python True equals 1.
        return value is None or any(
            value == own and isinstance(value, bool) == isinstance(own, bool) for own in self.values
        )


_TEXT_ONLY = "Only text is supported"
_NO_TRANSFER = "Caches are not moved between servers"
_NO_BEAMS = "Beam search is not supported: ask for several choices with n"
_TEMPLATE = "A chat template is a program, so only the operator can set it, with --chat-template"
_RENDER_ONLY = "Only vLLM's render endpoints return it, which this server does not have"

_MULTIMODAL: Mapping[str, Neutral] = {
    "media_io_kwargs": Neutral(({},), _TEXT_ONLY),
    "mm_processor_kwargs": Neutral(({},), _TEXT_ONLY),
}
GENERATION_FIELDS: Mapping[str, Neutral] = {
    "use_beam_search": Neutral((False,), _NO_BEAMS),
    "length_penalty": Neutral((1.0,), _NO_BEAMS),
    "watermarking": Neutral((False,), "Text is not watermarked"),
    "repetition_detection": Neutral(
        ({},), "Repetition does not end a choice: use repetition_penalty, frequency_penalty or max_tokens"
    ),
    "stream_interval": Neutral((1,), "Tokens are sent as they are generated"),
    "routed_experts_prompt_start": Neutral((0,), "The experts of a token are not returned"),
    "return_token_offsets": Neutral((False,), _RENDER_ONLY),
    # Both values have a meaning only at vLLM's render endpoints.
    "mm_payload": Neutral(("tensors", "none"), _TEXT_ONLY),
    "return_mm_kwargs": Neutral((False, True), _TEXT_ONLY),
    "kv_transfer_params": Neutral(({},), _NO_TRANSFER),
    "ec_transfer_params": Neutral(({},), _NO_TRANSFER),
    "vllm_xargs": Neutral(({},), "This server has no extensions that read it"),
    "session_id": Neutral((), "The prefix cache works without it", is_unknown=True),
}
CHAT_FIELDS: Mapping[str, Neutral] = {
    **GENERATION_FIELDS,
    **_MULTIMODAL,
    "add_special_tokens": Neutral((False,), "The chat template writes the special tokens itself"),
    "chat_template": Neutral((), _TEMPLATE),
    "return_prompt_text": Neutral(
        (False,), "The rendered prompt is not returned: send the messages to /tokenize, and the tokens to /detokenize"
    ),
}
COMPLETION_FIELDS: Mapping[str, Neutral] = {
    **GENERATION_FIELDS,
    "add_special_tokens": Neutral((True,), "For a prompt without special tokens, send the token ids from /tokenize"),
    "prompt_embeds": Neutral((), "A prompt is text or token ids"),
}
TOKENIZE_FIELDS: Mapping[str, Neutral] = {**_MULTIMODAL, "chat_template": Neutral((), _TEMPLATE)}
TOOL_FIELDS: Mapping[str, Neutral] = {
    "defer_loading": Neutral((False,), "The model gets every tool at once"),
}


class NeutralModel(WireModel):
    """A body that may have `neutral` fields. They are dropped before it is parsed."""

    neutral: ClassVar[Mapping[str, Neutral]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        dropped: set[str] = set()
        for name in sorted(cls.neutral.keys() & value.keys()):
            field = cls.neutral[name]
            if field.holds(value[name]):
                dropped.add(name)
            elif not field.is_unknown:
                raise unsupported(f"{field.reason}. Leave it out", name)
        return {name: own for name, own in value.items() if name not in dropped} if dropped else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in cls.neutral.items():
            schema["properties"][name] = {
                "description": f"Changes nothing. Other values are refused: {field.reason}.",
                "enum": [None, *field.values],
            }
        return schema
