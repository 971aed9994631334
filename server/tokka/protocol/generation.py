"""The common request fields of chat and text completions, and their conversion to `core.Sampling`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from tokka.core import Constraint, GenerateRequest, IgnoredFields, Sampling
from tokka.protocol.chunks import AnswerForm, Form
from tokka.protocol.common import MAX_INT64, BodyModel, Int64, TokenId, WireModel, bounded_dict, invalid, only_neutral
from tokka.protocol.common_fields import (
    CacheSalt,
    MinP,
    Model,
    Penalty,
    Priority,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
)
from tokka.protocol.constraint import StructuredOutputs
from tokka.protocol.vllm_fields import NeutralModel

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
# Maximum alternatives of a prompt token, and maximum tokens in `logprob_token_ids`.
MAX_PROMPT_LOGPROBS = 20
MAX_CHOICES = 1024  # maximum prompts times choices of one request
# Maximum choices times listed words, biases and token ids. The engine gets the lists again for each choice.
MAX_LISTED = 65_536

_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
    bounded_dict(MAX_BIASES),
    Field(json_schema_extra={"additionalProperties": False, "maxProperties": MAX_BIASES}),
]
_True = Annotated[bool | None, *only_neutral(True)]
_False = Annotated[bool | None, *only_neutral(False)]
WireStop = _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOPS)] | None


def stop_list(value: Any) -> list[str]:
    """Parse one string or a list of them; errors name the entry."""
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise invalid("Input should be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise invalid(f"At most {MAX_STOPS} stop strings are allowed; got {len(stops)}")
    for at, stop in enumerate(stops):
        where = "" if isinstance(value, str) else f"[{at}]"
        if not isinstance(stop, str):
            raise invalid("Input should be a string", where)
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise invalid(f"A stop string must have 1 to {MAX_STOP_CHARS} characters; this one has {len(stop)}", where)
    return stops


@dataclass(frozen=True, slots=True)
class ParsedGeneration(Generic[Form]):
    """A valid body as plain data: the request, and the form of the response."""

    request: GenerateRequest
    form: Form
    ignored: IgnoredFields


class StreamOptions(WireModel):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="Send the usage so far with every chunk.")
    include_obfuscation: bool | None = Field(
        None, description="Pad chunks, so that their sizes reveal less of the text."
    )


class GenerationFields(BodyModel, NeutralModel):
    """The fields of both endpoints. Bounds are the same as OpenAI's, where it states them."""

    model: Model

    # Length and stop control
    max_tokens: int | None = Field(None, ge=0, le=MAX_INT64, description="Maximum tokens to generate per choice.")
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT64, description="Minimum tokens before a choice may stop.")
    stop: Annotated[list[str], PlainValidator(stop_list, json_schema_input_type=WireStop)] = Field(
        default_factory=list,
        description=f"Up to {MAX_STOPS} strings at which a choice ends. The string itself is not returned.",
    )
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(None, max_length=128)
    include_stop_str_in_output: bool | None = Field(None, description="Also return the stop string that matched.")
    ignore_eos: bool | None = Field(
        None, description="Keep generating after the end-of-sequence token, up to the length limit."
    )
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1, le=MAX_INT64)] | None = Field(
        None, description="Maximum tokens of the prompt to keep. -1: as many as leave room for the completion."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="The side of the prompt to cut off. Default: `left`, which keeps its end."
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="Seconds after which the text so far is returned, with stop_reason `timeout`.",
    )

    # Choice of tokens
    n: int | None = Field(None, ge=1, le=128, description="Choices to generate for each prompt.")
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: RepetitionPenalty = None
    seed: Int64 | None = None
    logit_bias: _LogitBias | None = Field(None, description="Biases by token id, -100 to 100.")
    bad_words: Annotated[list[_StopString], Field(fail_fast=True)] | None = Field(None, max_length=128)
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=8192
    )

    thinking_token_budget: int | None = Field(
        None,
        ge=-1,
        le=MAX_INT64,
        description="Maximum reasoning tokens; at the limit, reasoning ends. -1: no limit. Needs --reasoning-parser.",
    )

    # Form of the answer
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The constraint that every choice must match."
    )

    # Output
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_PROMPT_LOGPROBS,
        description="Report the logprob of each prompt token, and this many alternatives. Not with stream: true.",
    )
    logprob_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None,
        max_length=MAX_PROMPT_LOGPROBS,
        description="Report these tokens for each token instead of the most likely ones. Needs logprobs.",
    )
    return_tokens_as_token_ids: bool | None = Field(None, description="Write the tokens of logprobs as `token_id:5`.")
    stream: bool | None = Field(None, description="Send server-sent events as the text is generated.")
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = Field(
        None, description="Only affects vocabularies of whole words. Default: true."
    )
    request_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.:-]{1,128}$",
        description="The response id, after `chatcmpl-` or `cmpl-`. Default: a random one.",
    )
    return_token_ids: bool | None = Field(None, description="Return the token ids of the prompt and the choices.")

    # Scheduling
    priority: Priority = None
    cache_salt: CacheSalt = None

    # Accepted for compatibility with OpenAI, without effect
    user: str | None = Field(None, max_length=1024)

    # Some routers add these. Only the value without effect is accepted
    no_stop_trim: _False = None
    return_hidden_states: _False = None
    separate_reasoning: _True = None
    stream_reasoning: _True = None
    include_reasoning: _True = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # An empty object asks for nothing, and vLLM accepts it as well.
        if self.stream_options is not None and self.stream_options.model_fields_set and not self.stream:
            raise invalid("stream_options is only allowed with stream: true", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise invalid("prompt_logprobs cannot be streamed: send stream: false", "prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _leaves_room_for_the_constraint(self) -> Self:
        """Refuse fields that generate past the end of a constraint, or forbid the only token that it allows."""
        if self.constraint is None:
            return self
        beside = "strict functions" if self.constraint.is_optional else self.constraint.param
        for name in ("ignore_eos", "min_tokens", "bad_words", "allowed_token_ids"):
            if getattr(self, name):
                raise invalid(f"{name} cannot be combined with {beside}: leave one out", name)
        return self

    @property
    def num_choices(self) -> int:
        """Return the number of choices to generate in all."""
        return self.n or 1

    @model_validator(mode="after")
    def _lists_little_for_each_choice(self) -> Self:
        lists = {
            "bad_words": self.bad_words,
            "logit_bias": self.logit_bias,
            "stop_token_ids": self.stop_token_ids,
            "allowed_token_ids": self.allowed_token_ids,
            "logprob_token_ids": self.logprob_token_ids,
        }
        sizes = {name: len(value or ()) for name, value in lists.items()}
        listed = sum(sizes.values())
        if listed * self.num_choices > MAX_LISTED:
            raise invalid(
                f"{self.num_choices} choices times {listed} listed words, biases and token ids are more than"
                f" {MAX_LISTED}: ask for fewer choices, or list fewer",
                max(sizes, key=lambda name: sizes[name]),
            )
        return self

    @property
    def budget(self) -> int | None:
        """Return the maximum reasoning tokens, or None without a limit."""
        return None if self.thinking_token_budget == -1 else self.thinking_token_budget

    @model_validator(mode="after")
    def _can_end_reasoning(self) -> Self:
        # Together they could leave the engine without an allowed token.
        for name in ("bad_words", "allowed_token_ids") if self.budget is not None else ():
            if getattr(self, name):
                raise invalid(f"{name} cannot be combined with thinking_token_budget: leave one out", name)
        return self

    @property
    @abstractmethod
    def constraint(self) -> Constraint | None:
        """Return the constraint that every choice must match, or None."""

    def answer_form(self) -> AnswerForm:
        """Return the form that these fields ask for."""
        return self.form()

    def form(
        self,
        *,
        candidates: int | None = None,
        alternatives: int | None = None,
        shows_reasoning: bool = True,
        has_content: bool = True,
        echo: str = "",
    ) -> AnswerForm:
        """Return the form that these fields ask for. Arguments are fields that the endpoints define differently."""
        options = self.stream_options
        return AnswerForm(
            model=self.model,
            stream=bool(self.stream),
            choices=self.n or 1,
            candidates=candidates or self.n or 1,
            alternatives=alternatives,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats and options.include_usage is not False),
            obfuscates=bool(options and options.include_obfuscation),
            shows_token_ids=bool(self.return_token_ids),
            answer_id=self.request_id,
            shows_reasoning=shows_reasoning,
            names_ids=bool(self.return_tokens_as_token_ids),
            has_content=has_content,
            echo=echo,
        )

    @abstractmethod
    def to_core(self) -> GenerateRequest: ...

    def parsed(self) -> ParsedGeneration[AnswerForm]:
        """Return the valid body as plain data."""
        return ParsedGeneration(self.to_core(), self.answer_form(), self.ignored)

    def sampling(
        self, *, n: int, max_tokens: int | None, logprobs: int | None, default_max_tokens: int | None = None
    ) -> Sampling:
        """Return the sampling that these fields ask for. Arguments are fields that the endpoints define differently."""
        return Sampling(
            n=n,
            max_tokens=max_tokens,
            default_max_tokens=default_max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            logit_bias=None if self.logit_bias is None else {int(k): float(v) for k, v in self.logit_bias.items()},
            logprobs=len(self.logprob_token_ids) if self.logprob_token_ids else logprobs,
            logprob_token_ids=tuple(self.logprob_token_ids or ()),
            prompt_logprobs=self.prompt_logprobs,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop=bool(self.include_stop_str_in_output),
            ignore_eos=bool(self.ignore_eos),
            bad_words=tuple(self.bad_words or ()),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            skip_special_tokens=self.skip_special_tokens is not False,
            spaces_between_special_tokens=self.spaces_between_special_tokens is not False,
            thinking_token_budget=self.budget,
            constraint=self.constraint,
        )
