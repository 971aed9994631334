"""The nouns every layer shares: what is asked of an engine, and the events it answers with.

Plain frozen data, standard library only. Requests come from `protocol/`, events from `engine/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls"]
ToolChoice = Literal["none", "auto", "required", "named"]
# `json`: a JSON Schema; `regex`: an expression; `choice`: a JSON list of strings; `grammar`: one in Lark or GBNF;
# `calls`: a JSON object of `functions`, schemas by name that hold wherever a text calls one in the form of Hermes, and
# `answer`: null, or the schema of an answer that calls none; `tags`: a JSON list of what may stand in free text.
ConstraintKind = Literal["json", "regex", "choice", "grammar", "calls", "tags"]
# Why an engine serves no more: it ended, made no step with work to do, answered no call, or could not be rebuilt.
DeathReason = Literal["died", "stalled", "unresponsive", "start_failed"]
Outcome = Literal["stop", "length", "tool_calls", "aborted", "timeout", "rejected", "invalid", "error"]
KeyScope = Literal["inference", "metrics", "admin"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may use. None: no limit of its own."""

    # Requests and tokens a minute; tokens are prompt and completion together, in all limits here.
    rpm: int | None = None
    tpm: int | None = None
    # Choices at once, waiting ones included.
    max_running: int | None = None
    # Of one choice.
    max_completion_tokens: int | None = None
    # By the calendar, in UTC.
    daily_tokens: int | None = None
    monthly_tokens: int | None = None

    @property
    def has_quota(self) -> bool:
        return (self.daily_tokens, self.monthly_tokens) != (None, None)


@dataclass(frozen=True, slots=True)
class Key:
    """A known credential. `tenant` is who is counted and shared between; scopes say what it may do."""

    id: str
    tenant: str
    scopes: frozenset[KeyScope]
    limits: Limits = Limits()
    # Names it may use; None: all that are served.
    models: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens a key has used in the present day and month, in UTC."""

    day: int = 0
    month: int = 0
    # What this server may use before it has asked the others that share the key's quotas; None: it need not ask.
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Downtime:
    """A window in which the operator lets nothing new run. Times are seconds since 1970, in UTC; `end` is past it."""

    id: str
    begin: int
    end: int
    reason: str


# Who sends a request that needs no key.
ANONYMOUS = Key("anonymous", "anonymous", frozenset({"inference"}))


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions a model may call, each as templates know it: `{"type": "function", "function": {...}}`."""

    functions: tuple[dict[str, Any], ...]
    choice: ToolChoice = "auto"
    # Only with the choice "named": the function that is called, whatever is asked.
    name: str | None = None
    # Of the functions those that may be called; None: all of them.
    allowed: frozenset[str] | None = None
    # More than one call in an answer.
    parallel: bool = True
    # What holds for the arguments of each function even if the model chooses; None: nothing does.
    schemas: Mapping[str, Any] | None = None
    # The schema of an answer that calls none of them; None: any text.
    answer: Mapping[str, Any] | None = None
    # The wire field that holds it, for error messages.
    answer_param: str = "response_format"

    @property
    def names(self) -> frozenset[str]:
        """Those that may be called."""
        if self.allowed is not None:
            return self.allowed
        return frozenset(tool["function"]["name"] for tool in self.functions)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages in OpenAI's plain dict shape, to be rendered by the model's chat template."""

    messages: tuple[dict[str, Any], ...]
    # None: none, or none that may be called.
    tools: Tools | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # How much the model is to think, for templates that tell it. None: as it likes.
    reasoning_effort: str | None = None
    verbosity: str | None = None
    add_special_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str
    # Add the tokens that begin and end a text. None: as the kind of prompt has it.
    add_special_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    token_ids: Sequence[int]


Prompt = ChatPrompt | TextPrompt | TokensPrompt
# A function's description and schema, about.
_TOOL_CHARS = 400


def text_chars(prompt: Prompt) -> int:
    """Return about how many characters of a prompt are yet to be tokenised."""
    match prompt:
        case TextPrompt(text):
            return len(text)
        case ChatPrompt(messages=messages, tools=tools):
            written = sum(len(message.get("content") or "") for message in messages)
            documents = prompt.template_kwargs.get("documents", ())
            written += sum(len(text) for document in documents for text in document.values())
            return written + _TOOL_CHARS * len(tools.functions if tools else ())
        case TokensPrompt():
            return 0


@dataclass(frozen=True, slots=True)
class FunctionSchema:
    """The parameters of one function, as the request gave them. A strict function's schema is never loosened."""

    name: str
    parameters: Mapping[str, Any] | None
    strict: bool


@dataclass(frozen=True, slots=True)
class RequiredCalls:
    """What a constraint on tool calls is made of. `most_calls` is None for one named function: its arguments alone."""

    functions: tuple[FunctionSchema, ...]
    most_calls: int | None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole text of every choice must match, unless its length limit or a stop string cuts it short."""

    kind: ConstraintKind
    text: str
    # Name of the wire field, for error messages.
    param: str
    # Makes looser texts if this one cannot be compiled; None if the text must hold as it is.
    calls: RequiredCalls | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens and when to stop. None means: the model's own default."""

    n: int = 1
    # None: as much as the context, or the server's cap, leaves. 0: score the prompt, generate nothing.
    max_tokens: int | None = None
    # What a request without max_tokens gets if there is room for it.
    default_max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    # Alternatives reported beside each sampled token; 0: the sampled token's own logprob only.
    logprobs: int | None = None
    # Alternatives that are reported instead of the likeliest ones, as many as `logprobs` says.
    logprob_token_ids: tuple[int, ...] = ()
    # As `logprobs`, for each token of the prompt.
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    # Tokens of reasoning, after which the engine ends it. None: as many as the model likes.
    thinking_token_budget: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request as the engine sees it: `len(prompts) * sampling.n` choices, numbered prompt by prompt."""

    id: str
    model: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    # Names of the wire fields, for error messages.
    prompt_param: str = "messages"
    limit_param: str = "max_completion_tokens"
    echo: bool = False
    # Tokens to keep of each prompt: its end, or its start where the right side is cut. -1: as many as leave room.
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
    timeout_s: float | None = None
    # Among its tenant's own requests; lower runs sooner.
    priority: int = 0
    cache_salt: str | None = None
    # Whose request it is, where the engine shares something between tenants.
    tenant: str = ""
    # What the key allows a choice, whatever the request asks for.
    max_tokens_cap: int | None = None
    # Somebody reads along. If not, tokens may come in lumps.
    stream: bool = True
    # What `protocol.fingerprint` makes of it, if that was done already.
    fingerprint: bytes | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its logprob; `bytes` joined over a text are exactly its UTF-8."""

    id: int
    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The prompts are rendered and counted, and the engine refuses nothing any more. Always the first event; work
    begins when the next one is asked for."""

    prompt_token_ids: tuple[Sequence[int], ...]
    # What one choice may generate, prompt by prompt.
    allowed_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptEcho:
    """The prompt itself, before the first delta of its choices (only if `echo` was asked for)."""

    prompt_index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The logprobs of some of a prompt's tokens, in order (only if `prompt_logprobs` was asked for).

    `ranks`: the place of each token among all tokens by likelihood, from 1; 0 for the prompt's first.
    """

    prompt_index: int
    tokens: tuple[TokenLogprob, ...]
    ranks: tuple[int, ...]


# Not frozen: there is one for every token, and a frozen one takes three times as long to make.
@dataclass(slots=True)
class TextDelta:
    """New text of a choice. `text` is empty while a stop string or a UTF-8 character is incomplete."""

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: tuple[TokenLogprob, ...] | None = None
    # Generated but kept back, for whoever has to end the choice now.
    held: str = ""
    held_logprobs: tuple[TokenLogprob, ...] = ()

    def add(self, later: TextDelta) -> None:
        """Become this delta and the one behind it."""
        self.text += later.text
        self.token_ids = [*self.token_ids, *later.token_ids]
        if later.logprobs is not None:
            self.logprobs = (*(self.logprobs or ()), *later.logprobs)
        self.held, self.held_logprobs = later.held, later.held_logprobs


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """New text of what the model thinks before it answers. Its tokens are those of the TextDelta behind it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """New text of a call's arguments; its name comes with the first. Its tokens are those of the TextDelta behind it.

    The arguments joined are JSON, unless the choice was cut short or the model broke off.
    """

    index: int
    call_index: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceDone:
    """A choice has ended. `stop_reason`: the stop string or token id that matched, or "timeout"; None for EOS."""

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    # Sum over the choice's tokens, if logprobs were asked for.
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    # Of the completion's.
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Every choice has ended. Always the last event."""

    usage: Usage


Event = Accepted | PromptEcho | PromptLogprobs | TextDelta | ReasoningDelta | ToolCallDelta | ChoiceDone | Finished


@dataclass(frozen=True, slots=True)
class IgnoredFields:
    """Unknown fields of a request that were ignored: the names of those of the body, and how many its messages hold."""

    names: tuple[str, ...] = ()
    in_messages: int = 0


@dataclass(slots=True)
class RequestRecord:
    """What one HTTP request did, filled in on its way and read once at its end by log and metrics."""

    id: str
    arrived_s: float
    endpoint: str = ""
    # None until the request has shown whose it is.
    key: Key | None = None
    model: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    last_token_s: float | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    ignored: IgnoredFields = IgnoredFields()
    # In our own queue, before the engine.
    queue_s: float | None = None
    # Only with --log-prompts.
    prompt: list[dict[str, Any]] | None = None

    @property
    def tenant(self) -> str:
        return self.key.tenant if self.key else ""
