"""The messages between a gateway and a worker that has joined. A payload is a list of messages, in order.

`request` is the number of a request or call, chosen by the gateway and unique on its connection.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tokka.core import ChatPrompt, ChoiceDone, Embedding, ReasoningDelta, Sampling, TextPrompt, ToolCallDelta, Usage
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.protocol.worker.frames import BrokenFrame
from tokka.tasks import Task


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The base of all messages: an array whose first element is the kind."""


# -- parts of messages


class Score(msgspec.Struct, array_like=True):
    """A `core.TokenLogprob`."""

    id: int
    text: str
    data: bytes
    logprob: float | None
    top: list[Score]


class Chat(Message, tag=0):
    prompt: ChatPrompt


class Text(Message, tag=1):
    prompt: TextPrompt


class Tokens(Message, tag=2):
    """A TokensPrompt."""

    token_ids: list[int]
    param: str


class Error(Message):
    """A `TokkaError`. `kind`: the name of its class."""

    kind: str
    message: str
    param: str | None
    retry_after_s: float | None
    should_retry: bool | None
    # Only of ContextLengthExceeded.
    prompt_tokens: int | None
    maximum: int


# -- gateway to worker


class Ping(Message, tag=0):
    """Asks for a Pong. Shows both sides that the other lives."""


class Open(Message, tag=1):
    """Prepare a request: a `core.GenerateRequest`, field by field, since msgspec cannot tell its prompts apart."""

    request: int
    prompts: list[Chat | Text | Tokens]
    id: str
    model: str
    sampling: Sampling
    task: Task
    dimensions: int | None
    prompt_param: str
    limit_param: str
    echo: bool
    truncate_prompt_tokens: int | None
    truncation_side: Literal["left", "right"]
    timeout_s: float | None
    priority: int
    cache_salt: str | None
    tenant: str
    max_tokens_cap: int | None
    stream: bool
    keeps_answer: bool
    drops_oldest: bool
    fingerprint: bytes | None
    # Four bytes per token id.
    resume: bytes


class Go(Message, tag=2):
    """Run a prepared request."""

    request: int


class Abort(Message, tag=3):
    """Forget a request or call, in whatever state it is."""

    request: int


class Tokenize(Message, tag=4):
    request: int
    prompt: Chat | Text | Tokens
    tenant: str


class Detokenize(Message, tag=5):
    request: int
    token_ids: list[int]
    tenant: str


class TokenTexts(Message, tag=6):
    request: int
    token_ids: list[int]
    tenant: str


class Probe(Message, tag=7):
    """Call `Engine.ping`."""

    request: int


class Drain(Message, tag=8):
    """Finish the open requests, then end."""


class NoMore(Message, tag=9):
    """The gateway has read Draining, and opens no more requests."""


# -- worker to gateway


class Delta(Message, tag=0):
    """A TextDelta without logprobs."""

    request: int
    index: int
    text: str
    token_ids: list[int]
    held: str


class ScoredDelta(Message, tag=1):
    """A TextDelta with logprobs."""

    request: int
    index: int
    text: str
    token_ids: list[int]
    held: str
    scores: list[Score] | None
    held_scores: list[Score]


class Reasoning(Message, tag=2):
    request: int
    event: ReasoningDelta


class ToolCall(Message, tag=3):
    request: int
    event: ToolCallDelta


class Ended(Message, tag=4):
    request: int
    event: ChoiceDone


class Echo(Message, tag=5):
    """A PromptEcho."""

    request: int
    prompt_index: int
    text: str
    scores: list[Score] | None


class PromptScores(Message, tag=6):
    """A PromptLogprobs."""

    request: int
    prompt_index: int
    scores: list[Score]
    ranks: list[int]


class Accepted(Message, tag=7):
    """Answers Open. The token ids of each prompt are four bytes each, since a long prompt has a million."""

    request: int
    prompt_token_ids: list[bytes]
    allowed_tokens: list[int]
    dimensions: int


class Completed(Message, tag=8):
    request: int
    usage: Usage


class Failed(Message, tag=9):
    """A request or call has ended with an error."""

    request: int
    error: Error


class TokenIds(Message, tag=10):
    """Answers Tokenize. Four bytes per token id."""

    request: int
    token_ids: bytes


class Texts(Message, tag=11):
    """Answers Detokenize (one text), TokenTexts (one for each token) and Probe (none)."""

    request: int
    texts: list[str]


class Phase(Message, tag=12):
    """The engine is not ready: `state` is the supervisor's. After Ready, it means that the engine has died."""

    state: str
    phase: str
    detail: str


class Ready(Message, tag=13):
    """The engine is ready. `engine` counts the engines of the worker."""

    engine: int
    info: ModelInfo


class Stats(Message, tag=14):
    stats: EngineStats


class Draining(Message, tag=15):
    """The worker will end after its open requests. The gateway answers NoMore."""


class Bye(Message, tag=16):
    """The worker ends on purpose."""

    reason: str


class Pong(Message, tag=17):
    """Answers Ping."""


class Vector(Message, tag=18):
    request: int
    event: Embedding


FromGateway = Ping | Open | Go | Abort | Tokenize | Detokenize | TokenTexts | Probe | Drain | NoMore
FromWorker = (
    Delta
    | ScoredDelta
    | Reasoning
    | ToolCall
    | Ended
    | Echo
    | PromptScores
    | Vector
    | Accepted
    | Completed
    | Failed
    | TokenIds
    | Texts
    | Phase
    | Ready
    | Stats
    | Draining
    | Bye
    | Pong
)

_encode = msgspec.msgpack.Encoder().encode
_from_gateway: msgspec.msgpack.Decoder[list[FromGateway]] = msgspec.msgpack.Decoder(list[FromGateway])
_from_worker: msgspec.msgpack.Decoder[list[FromWorker]] = msgspec.msgpack.Decoder(list[FromWorker])


def encode(messages: list[Any]) -> bytes:
    """Raises ValueError or OverflowError for a value that msgpack cannot hold, like an integer of 65 bits."""
    return _encode(messages)


def from_gateway(payload: Any) -> list[FromGateway]:
    """Raises BrokenFrame."""
    try:
        return _from_gateway.decode(payload)
    except msgspec.MsgspecError as error:
        raise BrokenFrame(f"not messages of a gateway: {error}") from None


def from_worker(payload: Any) -> list[FromWorker]:
    """Raises BrokenFrame."""
    try:
        return _from_worker.decode(payload)
    except msgspec.MsgspecError as error:
        raise BrokenFrame(f"not messages of a worker: {error}") from None
