"""Events of a running request, and their form in messages."""

from __future__ import annotations

from collections.abc import Sequence

from tokka.core import (
    ChoiceDone,
    Embedding,
    Event,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from tokka.protocol.worker.messages import (
    Delta,
    Echo,
    Ended,
    PromptScores,
    Reasoning,
    Score,
    ScoredDelta,
    ToolCall,
    Vector,
)

EventMessage = Delta | ScoredDelta | Reasoning | ToolCall | Ended | Echo | PromptScores | Vector
EVENT_MESSAGES = (Delta, ScoredDelta, Reasoning, ToolCall, Ended, Echo, PromptScores, Vector)


def packed_event(number: int, event: Event) -> EventMessage:
    """Return the message of a request's event. There is none of `Accepted` and `Finished`."""
    if type(event) is TextDelta:
        ids = event.token_ids if type(event.token_ids) is list else list(event.token_ids)
        if event.logprobs is None and not event.held_logprobs:
            return Delta(number, event.index, event.text, ids, event.held)
        scores, held = _scores(event.logprobs), _scores(event.held_logprobs) or []
        return ScoredDelta(number, event.index, event.text, ids, event.held, scores, held)
    match event:
        case ChoiceDone():
            return Ended(number, event)
        case ReasoningDelta():
            return Reasoning(number, event)
        case ToolCallDelta():
            return ToolCall(number, event)
        case Embedding():
            return Vector(number, event)
        case PromptEcho():
            return Echo(number, event.prompt_index, event.text, _scores(event.logprobs))
        case PromptLogprobs():
            return PromptScores(number, event.prompt_index, _scores(event.tokens) or [], list(event.ranks))
    raise TypeError(f"{type(event).__name__} is not an event of a running request")


def event_of(message: EventMessage) -> Event:
    if type(message) is Delta:
        return TextDelta(message.index, message.text, message.token_ids, None, message.held)
    match message:
        case Ended() | Reasoning() | ToolCall() | Vector():
            return message.event
        case ScoredDelta():
            scores, held = _logprobs(message.scores), _logprobs(message.held_scores) or ()
            return TextDelta(message.index, message.text, message.token_ids, scores, message.held, held)
        case Echo():
            return PromptEcho(message.prompt_index, message.text, _logprobs(message.scores))
        case PromptScores():
            return PromptLogprobs(message.prompt_index, _logprobs(message.scores) or (), tuple(message.ranks))
    raise TypeError(f"{type(message).__name__} is not the message of an event")


def _scores(tokens: Sequence[TokenLogprob] | None) -> list[Score] | None:
    if tokens is None:
        return None
    return [Score(token.id, token.text, token.bytes, token.logprob, _scores(token.top) or []) for token in tokens]


def _logprobs(scores: Sequence[Score] | None) -> tuple[TokenLogprob, ...] | None:
    if scores is None:
        return None
    return tuple(
        TokenLogprob(score.id, score.text, score.data, score.logprob, _logprobs(score.top) or ()) for score in scores
    )
