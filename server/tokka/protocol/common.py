"""Common parts of all wire formats: strict closed models, bounded text, ids, usage."""

from __future__ import annotations

import random
import secrets
import time
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tokka.core import IgnoredFields, PromptLogprobs, TokenLogprob, Usage

# Maximum characters of a text: longer than any context. The limit of a body, a setting, is usually lower.
MAX_TEXT_CHARS = 8 * 1024 * 1024
MAX_INT64 = 2**63 - 1
# Maximum fields of an object: more than any of our models declares.
MAX_FIELDS = 256

Int64 = Annotated[int, Field(ge=-MAX_INT64 - 1, le=MAX_INT64)]
# The type of arrays of token ids: 4 bytes each, while a list takes 36.
ID_TYPECODE = "I"
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
# A field of OpenAI that is not supported yet. Null is the same as absent; other values are refused.
Unsupported = Annotated[None, Field(description="Not supported by this server yet. Leave it out or send null.")]


class WireModel(BaseModel):
    """A closed model: strict types, no NaN or infinity, no undeclared fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        # Each unknown field costs an error object. Half a million of them would stop every stream for seconds.
        return _at_most(MAX_FIELDS, value)


class OpenModel(WireModel):
    """A model that accepts and ignores unknown fields, because messages of other servers and clients have some."""

    model_config = ConfigDict(extra="allow")

    @property
    def unknown(self) -> int:
        """Return the number of unknown fields, without the fields of parts."""
        return len(self.model_extra or ())


class BodyModel(WireModel):
    """The body of a request."""

    _ignored_names: tuple[str, ...] = ()

    def without(self, names: tuple[str, ...]) -> Self:
        """Record the names of fields removed from the body before it was parsed."""
        self._ignored_names = names
        return self

    @property
    def ignored(self) -> IgnoredFields:
        return self.ignored_with(0)

    def ignored_with(self, in_messages: int) -> IgnoredFields:
        """Return the ignored fields of a body. `in_messages`: their number in its messages."""
        return IgnoredFields(self._ignored_names, in_messages)


def only_neutral(value: bool) -> tuple[Any, Any]:
    """Return annotations for a field of other servers that accept only the value without effect here.

    Not a Literal, because pydantic takes 0 for False.
    """
    said = str(value).lower()

    def check(given: bool | None) -> bool | None:
        if given is not None and given is not value:
            raise unsupported(f"Only {said} is supported: send that, or leave it out")
        return given

    documented = Field(description=f"Must be {said}, which changes nothing.", json_schema_extra={"enum": [value, None]})
    return AfterValidator(check), documented


def bounded_dict(most: int) -> BeforeValidator:
    """Check a dict's size before its items. pydantic checks it afterwards, and keeps an error for each bad item."""
    return BeforeValidator(lambda value: _at_most(most, value))


def _at_most(most: int, value: Any) -> Any:
    if isinstance(value, dict) and len(value) > most:
        raise invalid(f"An object may have at most {most} entries here; this one has {len(value)}")
    return value


MAX_METADATA = 16
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    bounded_dict(MAX_METADATA),
    Field(json_schema_extra={"maxProperties": MAX_METADATA}),
]


def invalid(reason: str, at: str = "") -> PydanticCustomError:
    """Return an error for an invalid value. `at`: the path below the field, like `[2]`."""
    return PydanticCustomError("tokka_invalid", "{reason}", {"reason": reason, "at": at})


def unsupported(reason: str, at: str = "") -> PydanticCustomError:
    """Return an error for a value that this server does not support. `at`: as in `invalid`."""
    return PydanticCustomError("tokka_unsupported", "{reason}", {"reason": reason, "at": at})


def type_of(value: Any) -> Any:
    """Return the `type` of a JSON object, not validated, or of its model. None: it has none."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def supported(value: Any, others: frozenset[str], what: str, remedy: str) -> Any:
    """Return a JSON value before its validation. Raise if it is an object of a type among `others`."""
    kind = type_of(value)
    if isinstance(kind, str) and kind in others:
        raise unsupported(f"{what} of type {kind!r} are not supported: {remedy}", ".type")
    return value


# Ids are not secrets. The system's random source would cost a system call of 30 us for each.
_names = random.Random(secrets.token_bytes(32))  # noqa: S311


def new_id(prefix: str) -> str:
    return f"{prefix}{_names.getrandbits(128):032x}"


def now_s() -> int:
    return int(time.time())


def prompt_logprobs_list(event: PromptLogprobs) -> list[dict[str, Any] | None]:
    """Return the logprobs in vLLM's form: for each token an object by token id, null for the prompt's first."""
    return [_by_id(token, rank) for token, rank in zip(event.tokens, event.ranks, strict=True)]


def _by_id(token: TokenLogprob, rank: int) -> dict[str, Any] | None:
    if token.logprob is None:
        return None
    ranked = {token.id: (rank, token)}
    for place, top in enumerate(token.top, 1):
        ranked.setdefault(top.id, (place, top))
    return {
        str(number): {"logprob": own.logprob, "rank": place, "decoded_token": own.text}
        for number, (place, own) in ranked.items()
    }


def padding(text: str) -> str:
    """Return 1 to 32 random characters that extend the text to a multiple of 32 characters."""
    return secrets.token_urlsafe(32)[: 32 - len(text) % 32]


def token_counts(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return OpenAI's usage object without its details."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object."""
    return {
        **token_counts(usage.prompt_tokens, usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def token_text(token: TokenLogprob, prefix: str = "", *, as_id: bool = False) -> str:
    r"""Return a token's text, or its bytes as `\xf0\x9f` if it holds only a part of a character, as OpenAI does.

    `as_id`: return its id instead, in vLLM's form.
    """
    if as_id:
        return f"token_id:{token.id}"
    if "\ufffd" not in token.text or not token.bytes:
        return token.text
    return prefix + "".join(f"\\x{byte:02x}" for byte in token.bytes)
