"""Data types that all layers share: keys, engine requests (from `protocol/`) and events (from `engine/`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tokka.required_calls import RequiredCalls
from tokka.tasks import Task

FinishReason = Literal["stop", "length", "tool_calls"]
ToolChoice = Literal["none", "auto", "required", "named"]
# `json`: a JSON Schema; `regex`: a regular expression; `choice`: a JSON list of strings; `grammar`: Lark or GBNF;
# `calls`: a JSON object with `functions` (argument schemas by name, for tool calls in Hermes format), `answer` (schema
# of text without tool calls, or null) and `parallel`; `tags`: a JSON list of tags that may occur in free text.
ConstraintKind = Literal["json", "regex", "choice", "grammar", "calls", "tags"]
Outcome = Literal["stop", "length", "tool_calls", "aborted", "timeout", "rejected", "invalid", "error"]
KeyScope = Literal["inference", "metrics", "admin"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one key. None: no limit. Tokens are prompt and completion together, except in max_completion_tokens."""

    # Requests and tokens per minute.
    rpm: int | None = None
    tpm: int | None = None
    # Choices at once, queued ones included.
    max_running: int | None = None
    # Per choice.
    max_completion_tokens: int | None = None
    # Per calendar day and month, in UTC.
    daily_tokens: int | None = None
    monthly_tokens: int | None = None

    @property
    def has_quota(self) -> bool:
        return (self.daily_tokens, self.monthly_tokens) != (None, None)


@dataclass(frozen=True, slots=True)
class Key:
    """A known credential. Usage and fair shares belong to `tenant`; `scopes` are the permissions."""

    id: str
    tenant: str
    scopes: frozenset[KeyScope]
    limits: Limits = Limits()
    # Model names that the key may use. None: all served names.
    models: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that a key has used in the current day and month, in UTC."""

    day: int = 0
    month: int = 0
    # Tokens left in this server's lease on a shared quota. None: it needs no lease.
    held: int | None = None


# The key of a request that needs no key.
ANONYMOUS = Key("anonymous", "anonymous", frozenset({"inference"}))


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of a request, in the form that chat templates use: `{"type": "function", "function": {...}}`."""

    functions: tuple[dict[str, Any], ...]
    choice: ToolChoice = "auto"
    # Only with the choice "named": the function that the model must call.
    name: str | None = None
    # Names of the functions that the model may call. None: all functions.
    allowed: frozenset[str] | None = None
    # Whether a choice may contain several tool calls.
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """Names of the functions that the model may call."""
        if self.allowed is not None:
            return self.allowed
        return frozenset(tool["function"]["name"] for tool in self.functions)


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message. `url`: a data URL, unless `problem` says why it is not one."""

    url: str
    # Name of the wire field, for error messages.
    param: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as plain dicts in OpenAI's format. The model's chat template renders them."""

    messages: tuple[dict[str, Any], ...]
    # None if the model may call no tools.
    tools: Tools | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # For templates that support it. None: the template's default.
    reasoning_effort: str | None = None
    verbosity: str | None = None
    add_special_tokens: bool | None = None
    # The images of all messages, in order. The messages hold only text.
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text. `add_special_tokens`: add begin and end tokens; None: the default of the request's kind."""

    text: str
    add_special_tokens: bool | None = None
    # Name of the wire field, for error messages. Empty: the request's.
    param: str = ""


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    """A prompt as token ids. `param`: as in a text."""

    token_ids: Sequence[int]
    param: str = ""


Prompt = ChatPrompt | TextPrompt | TokensPrompt


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that the whole text of every choice must have, unless a token limit or a stop string cuts it short."""

    kind: ConstraintKind
    text: str
    # Name of the wire field, for error messages.
    param: str
    # Source of looser schemas if `text` cannot be compiled. None: `text` must not be loosened.
    calls: RequiredCalls | None = field(default=None, compare=False)
    # Whether an engine leaves it out for a model whose tool-call format it cannot constrain.
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens and when to stop. None: the model's own default."""

    n: int = 1
    # None: the rest of the context, or the server's cap. 0: score the prompt, generate nothing.
    max_tokens: int | None = None
    # Replaces a missing max_tokens if there is room for it.
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
    # Number of alternatives reported for each sampled token. 0: only the logprob of the sampled token.
    logprobs: int | None = None
    # Alternatives to report instead of the likeliest ones. Their number is `logprobs`.
    logprob_token_ids: tuple[int, ...] = ()
    # Like `logprobs`, for each token of the prompt.
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    # Maximum reasoning tokens. Beyond it, the engine ends the reasoning. None: no limit.
    thinking_token_budget: int | None = None
    is_budget_optional: bool = False  # True: no limit where the engine cannot enforce one.
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request for the engine. It has `len(prompts) * sampling.n` choices, numbered prompt by prompt."""

    id: str
    model: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    # With `embed`, each prompt has one vector.
    task: Task = "generate"
    # Numbers of each vector, for a model that allows fewer than its own. None: its own.
    dimensions: int | None = None
    # Names of the wire fields, for error messages.
    prompt_param: str = "messages"
    limit_param: str = "max_completion_tokens"
    echo: bool = False
    # Tokens to keep of each prompt: its end, or its start if `truncation_side` is right. -1: as many as fit.
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
    timeout_s: float | None = None
    priority: int = 0  # Order among the tenant's own requests. Lower runs sooner.
    cache_salt: str | None = None
    # The sender's tenant, for resources of the engine that tenants share.
    tenant: str = ""
    # The key's maximum tokens per choice. It caps `sampling.max_tokens`.
    max_tokens_cap: int | None = None
    # Whether the client reads tokens as they come. If not, the engine may send several steps' tokens together.
    stream: bool = True
    # Whether the server collects the answer even if it streams it.
    keeps_answer: bool = False
    # Whether to leave out the oldest messages of a chat that does not fit the context.
    drops_oldest: bool = False
    fingerprint: bytes | None = None  # The result of `protocol.fingerprint`, if already computed.
    # Tokens of the only choice that the client already has. The engine continues after them: generation/resume.py.
    resume: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its logprob. The `bytes` of a text's tokens, joined, are exactly its UTF-8."""

    id: int
    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine has counted and accepted the prompts. Always the first event."""

    prompt_token_ids: tuple[Sequence[int], ...]
    # Maximum tokens of one choice, prompt by prompt.
    allowed_tokens: tuple[int, ...] = ()
    # Numbers of each prompt's vector. 0: the request asks for none.
    dimensions: int = 0


@dataclass(frozen=True, slots=True)
class PromptEcho:
    """The prompt itself, before the first delta of its choices. Only with `echo`."""

    prompt_index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The logprobs of some of a prompt's tokens, in order. Only with `prompt_logprobs`.

    `ranks`: the rank of each token by likelihood, from 1. The prompt's first token has rank 0.
    """

    prompt_index: int
    tokens: tuple[TokenLogprob, ...]
    ranks: tuple[int, ...]


# Not frozen: there is one per token, and creating a frozen one takes three times as long.
@dataclass(slots=True)
class TextDelta:
    """New text of a choice. `text` is empty while a stop string or a UTF-8 character is incomplete."""

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: tuple[TokenLogprob, ...] | None = None
    # Generated but held back. Dispatch sends it if it has to end the choice now.
    held: str = ""
    held_logprobs: tuple[TokenLogprob, ...] = ()

    def add(self, later: TextDelta) -> None:
        """Append the choice's next delta to this one."""
        self.text += later.text
        self.token_ids = [*self.token_ids, *later.token_ids]
        if later.logprobs is not None:
            self.logprobs = (*(self.logprobs or ()), *later.logprobs)
        self.held, self.held_logprobs = later.held, later.held_logprobs


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """New reasoning text. The TextDelta that follows carries its tokens."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """New text of a tool call's arguments. The first delta has the name. The TextDelta that follows carries its tokens.

    The joined arguments are JSON, unless the choice was cut short or the model stopped inside them.
    """

    index: int
    call_index: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one prompt, as 32-bit floats in little-endian order. Vectors come in any order."""

    prompt_index: int
    vector: bytes


@dataclass(frozen=True, slots=True)
class ChoiceDone:
    """A choice has ended. `stop_reason`: the stop string or token id that matched, or "timeout"; None for EOS."""

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    # Sum over the choice's tokens. Only with logprobs.
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request. `completion_tokens` include `reasoning_tokens` and the tokens of `resume`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Every choice has ended. Always the last event."""

    usage: Usage


Event = (
    Accepted
    | PromptEcho
    | PromptLogprobs
    | TextDelta
    | ReasoningDelta
    | ToolCallDelta
    | Embedding
    | ChoiceDone
    | Finished
)


@dataclass(frozen=True, slots=True)
class IgnoredFields:
    """Ignored parts of a request: names of unknown fields, their number in messages, labels of tools not run here."""

    names: tuple[str, ...] = ()
    in_messages: int = 0
    tools: tuple[str, ...] = ()


@dataclass(slots=True)
class RequestRecord:
    """Facts about one HTTP request. Each layer fills in its own; log and metrics read them once, at the end."""

    id: str
    arrived_s: float
    endpoint: str = ""
    # None until the request is authenticated.
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
    # HTTP status of the response. 0: the response has not begun.
    status: int = 0
    ignored: IgnoredFields = IgnoredFields()
    # Time in Tokka's queue, before the engine.
    queue_s: float | None = None
    # Only with --log-prompts.
    prompt: list[dict[str, Any]] | None = None

    @property
    def tenant(self) -> str:
        return self.key.tenant if self.key else ""
