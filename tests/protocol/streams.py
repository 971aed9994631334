"""Random event lists as a real engine would send them, for requests of any shape."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import strategies as st

from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    FinishReason,
    PromptEcho,
    TextDelta,
    TokenLogprob,
    Usage,
)
from tokka.protocol.chunks import Encoder
from tokka.protocol.folding import dumps

# Characters of one to four bytes in UTF-8.
texts = st.text("ab ä€🦌", max_size=12)
logprobs = st.floats(-30, 0)
# finish_reason and stop_reason of a choice.
ENDINGS: list[tuple[FinishReason, str | int | None]] = [("length", None), ("stop", None), ("stop", "END"), ("stop", 7)]


def chunks_of(encoder: Encoder, events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return the chunks of a stream, as a client reads them."""
    return [orjson.loads(dumps(chunk)) for event in events for chunk in encoder.feed(event)]


def answer_of(encoder: Encoder, events: Iterable[Event]) -> dict[str, Any]:
    """Return the plain response, as a client reads it."""
    fold = encoder.fold()
    for event in events:
        for chunk in encoder.feed(event):
            fold.add(chunk)
    answer: dict[str, Any] = orjson.loads(b"".join(fold.pieces()))
    return answer


@dataclass(frozen=True)
class Shape:
    """The fields of a request that shape its events."""

    prompts: int = 1
    choices: int = 1
    alternatives: int | None = None
    echo: bool = False


def tokens_of(draw: st.DrawFn, text: str, alternatives: int) -> list[TokenLogprob]:
    """Split the text's UTF-8 into tokens, also inside characters."""
    raw = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=12))) if raw else []
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if raw[a:b]]
    top = tuple(
        TokenLogprob(900 + rank, f"<{rank}>", f"<{rank}>".encode(), -1.0 - rank) for rank in range(alternatives)
    )
    return [
        TokenLogprob(number, piece.decode(errors="replace"), piece, draw(logprobs), top)
        for number, piece in enumerate(pieces)
    ]


@st.composite
def choices(draw: st.DrawFn, index: int, shape: Shape) -> list[Event]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    waiting = tokens_of(draw, draw(texts), shape.alternatives or 0)
    total = sum(token.logprob or 0.0 for token in waiting)
    events: list[Event] = []
    while waiting:
        size = draw(st.integers(1, 4))
        step, waiting = waiting[:size], waiting[size:]
        text = "".join(decoder.decode(token.bytes) for token in step)
        ids = tuple(token.id for token in step)
        events.append(TextDelta(index, text, ids, None if shape.alternatives is None else tuple(step)))
    reason, stop = draw(st.sampled_from(ENDINGS))
    events.append(ChoiceDone(index, reason, stop, None if shape.alternatives is None else total))
    return events


@st.composite
def streams(draw: st.DrawFn, shape: Shape) -> list[Event]:
    """Draw a whole stream. Events of different choices are interleaved; each choice's events stay in order."""
    prompts = tuple(tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=5))) for _ in range(shape.prompts))
    events: list[Event] = [Accepted(prompts)]
    lists: list[list[Event]] = []
    for prompt in range(shape.prompts):
        if shape.echo:
            text = draw(st.text("pä🦌", min_size=1, max_size=4))
            scored = tokens_of(draw, text, shape.alternatives or 0)
            scored[0] = TokenLogprob(scored[0].id, scored[0].text, scored[0].bytes, None)
            events.append(PromptEcho(prompt, text, None if shape.alternatives is None else tuple(scored)))
        lists += [draw(choices(prompt * shape.choices + number, shape)) for number in range(shape.choices)]
    order = draw(st.permutations([place for place, own in enumerate(lists) for _ in own]))
    rest = [iter(own) for own in lists]
    events += [next(rest[place]) for place in order]
    completion = sum(len(event.token_ids) for event in events if isinstance(event, TextDelta))
    events.append(Finished(Usage(sum(map(len, prompts)), completion, draw(st.integers(0, 3)))))
    return events
