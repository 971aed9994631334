"""Outputs of vLLM's engine, written by hand, become Tokka's events."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.events import Collector
from tokka.core import (
    ChoiceDone,
    Event,
    GenerateRequest,
    PromptEcho,
    PromptLogprobs,
    Sampling,
    TextDelta,
    TextPrompt,
    TokenLogprob,
)
from tokka.engine.generation.delivery import Delivery
from tokka.engine.vllm.prompt_outputs import PromptOutputs
from tokka.engine.vllm.vocabulary import Vocabulary

EOS = 0


class Tokenizer:
    """A byte-level tokenizer. Ids 1 to 255 are bytes, written as in GPT-2's vocabulary. 0 is the end token."""

    all_special_ids = (EOS,)

    def __init__(self) -> None:
        from tokenizers import decoders

        self._tokenizer = SimpleNamespace(decoder=decoders.ByteLevel())

    def tokenize(self, text: str) -> list[str]:
        return list(text.replace(" ", "Ġ"))

    def get_vocab(self) -> dict[str, int]:
        return {"</s>": EOS, "Ġ": ord(" ")} | {chr(token): token for token in range(33, 127)}

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return {number: piece for piece, number in self.get_vocab().items()}.get(token)


class Prompt:
    """One prompt's outputs, fed by hand."""

    def __init__(self, sampling: Sampling, *, copies: int = 1, at: int = 0, stream: bool = True, **fields: Any) -> None:
        given: dict[str, Any] = {"echo": None, **fields}
        ids = given.pop("token_ids", [])
        sink = Collector()
        self.delivery = Delivery(sink, copies, given.pop("read", None))
        request = GenerateRequest("id", "m", (TextPrompt(""),), sampling, stream=stream, resume=given.pop("resume", ()))
        vocabulary = Vocabulary(Tokenizer())
        self.outputs = PromptOutputs(
            at, ids, request, self.delivery, copies=copies, limit=100, vocabulary=vocabulary, **given
        )
        self.sequence = self.outputs.sequence(0, None)
        self.events: list[Any] = sink.events

    def step(self, text: str, reason: str | None = None, stop: int | None = None, **fields: Any) -> bool:
        """Feed a step, by default with the characters of the text as tokens. Return whether it was the last step."""
        return self.sequence.take(
            fields.get("token_ids", [ord(char) for char in text]), reason, stop, fields.get("scores")
        )

    async def parts(self, scores: Any) -> list[Any]:
        """Let the prompt be computed; return its own events."""
        self.sequence.begin(0, scores)
        self.delivery.put(TextDelta(0, "x", ()), ChoiceDone(0, "length"))
        await self.delivery.run()
        return [event for event in self.events if isinstance(event, PromptEcho | PromptLogprobs)]

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta) and event.index == index)


def scores_of(*tokens: int, logprob: float = -0.5) -> LogprobsLists:
    """Return one row per token, without alternatives, as the engine sends them."""
    ids = np.array([[token] for token in tokens])
    return LogprobsLists(ids, np.full(ids.shape, logprob), np.ones(len(tokens)))


class LogprobsLists(NamedTuple):
    """The first fields of vLLM's class of this name."""

    logprob_token_ids: Any
    logprobs: Any
    sampled_token_ranks: Any


def test_text_and_end_are_passed_on_and_counted() -> None:
    prompt = Prompt(Sampling(), token_ids=[1] * 9)
    prompt.sequence.begin(7, None)
    assert not prompt.step("He")
    assert prompt.step("i", "length")
    assert prompt.text() == "Hei"
    assert prompt.events[-1] == ChoiceDone(0, "length")
    assert (prompt.outputs.completion_tokens, prompt.outputs.cached_tokens) == (3, 7)


def test_resumed_tokens_are_counted_in_the_completion_alone() -> None:
    prompt = Prompt(Sampling(), token_ids=[1] * 9, resume=(ord("H"), ord("e")))
    # One of the resumed tokens is cached, too.
    prompt.sequence.begin(10, None)
    assert prompt.step("i", "length")
    assert prompt.text() == "i"
    assert (prompt.outputs.completion_tokens, prompt.outputs.cached_tokens) == (3, 9)


def test_greedy_copies_are_numbered_after_their_prompt() -> None:
    prompt = Prompt(Sampling(n=3), copies=3, at=2)
    prompt.step("a")
    prompt.step("b", "length")
    assert [event.index for event in prompt.events if isinstance(event, ChoiceDone)] == [6, 7, 8]
    assert [prompt.text(index) for index in (6, 7, 8)] == ["ab"] * 3
    assert prompt.outputs.completion_tokens == 6


def test_a_stop_string_ends_the_sequence_before_the_engine_does() -> None:
    prompt = Prompt(Sampling(stop=("b", "a")))
    assert not prompt.step("x")
    # If a step completes two stop strings, the first one in the text counts. The tokens after it are dropped.
    assert prompt.step(" a b")
    assert prompt.text() == "x "
    assert prompt.events[-1] == ChoiceDone(0, "stop", "a")
    assert prompt.outputs.completion_tokens == 3


def test_stop_that_does_not_count_yet_is_text() -> None:
    prompt = Prompt(Sampling(stop=(".",), min_tokens=3))
    assert prompt.step("a.b.")
    assert prompt.text() == "a.b"
    assert prompt.events[-1] == ChoiceDone(0, "stop", ".")


@pytest.mark.parametrize("include", [False, True])
def test_text_of_a_stop_token_is_shown_only_when_asked_for(include: bool) -> None:
    prompt = Prompt(Sampling(stop=("unseen",), stop_token_ids=(ord("!"),), include_stop=include))
    assert prompt.step("Hi!", "stop", ord("!"))
    assert prompt.text() == ("Hi!" if include else "Hi")
    assert prompt.events[-1] == ChoiceDone(0, "stop", ord("!"))


def test_end_token_has_no_logprob_in_the_answer() -> None:
    prompt = Prompt(Sampling(logprobs=0))
    prompt.step("", "stop", token_ids=[ord("H"), EOS], scores=scores_of(ord("H"), EOS))
    delta = next(event for event in prompt.events if isinstance(event, TextDelta))
    assert [token.text for token in delta.logprobs or ()] == ["H"]
    assert list(delta.token_ids) == [ord("H"), EOS]
    assert prompt.events[-1] == ChoiceDone(0, "stop", None, -1.0)


def test_hidden_special_token_takes_no_room_before_a_stop() -> None:
    tokens = [ord("a"), EOS, ord("b"), ord("!")]
    prompt = Prompt(Sampling(logprobs=0, stop=("!",)))
    assert prompt.step("", token_ids=tokens, scores=scores_of(*tokens))
    delta = next(event for event in prompt.events if isinstance(event, TextDelta))
    assert delta.text == "ab"
    assert [token.text for token in delta.logprobs or ()] == ["a", "</s>", "b"]


async def echo_of(sampling: Sampling, text: str, token_ids: list[int], scores: Any) -> list[TokenLogprob]:
    """Check that an echo's parts add up to the text; return its logprobs."""
    prompt = Prompt(sampling, token_ids=token_ids, echo=text)
    parts = [part for part in await prompt.parts(scores) if isinstance(part, PromptEcho)]
    assert "".join(part.text for part in parts) == text
    return [token for part in parts for token in part.logprobs or ()]


async def test_special_token_before_an_echoed_text_takes_no_room_in_it() -> None:
    echo = await echo_of(Sampling(logprobs=0), "H", [EOS, ord("H")], scores_of(ord("H"), logprob=-1.0))
    assert b"".join(token.bytes for token in echo) == b"H"


async def test_echo_scores_every_token_but_the_first() -> None:
    text = "Hi" * 100
    scores = scores_of(*map(ord, text[1:]), logprob=-1.0)
    echo = await echo_of(Sampling(logprobs=1), text, [*map(ord, text)], scores)
    assert [(token.text, token.logprob) for token in echo[:2]] == [("H", None), ("i", -1.0)]
    assert "".join(token.text for token in echo) == text


async def test_prompt_logprobs_come_in_parts_with_their_ranks() -> None:
    text = "Hi" * 100
    prompt = Prompt(Sampling(prompt_logprobs=1), token_ids=[*map(ord, text)])
    ids = np.array([[ord(char), EOS] for char in text[1:]])
    parts = await prompt.parts(LogprobsLists(ids, np.full(ids.shape, -1.0), np.arange(1, len(text))))
    assert max(len(part.tokens) for part in parts) <= 64
    tokens = [token for part in parts for token in part.tokens]
    assert [(token.text, token.logprob) for token in tokens[:2]] == [("H", None), ("i", -1.0)]
    assert "".join(token.text for token in tokens) == text
    assert [top.id for top in tokens[1].top] == [EOS]
    assert [rank for part in parts for rank in part.ranks] == list(range(len(text)))


async def test_prompt_of_one_token_is_scored_with_none() -> None:
    prompt = Prompt(Sampling(prompt_logprobs=1), token_ids=[ord("H")])
    (part,) = await prompt.parts(None)
    assert isinstance(part, PromptLogprobs)
    assert [token.logprob for token in part.tokens] == [None]


async def test_echo_and_prompt_logprobs_have_their_own_alternatives() -> None:
    prompt = Prompt(Sampling(logprobs=1, prompt_logprobs=2), token_ids=[ord("H"), ord("i")], echo="Hi")
    rows = LogprobsLists(np.array([[ord("i"), ord("a"), ord("b")]]), np.array([[-3.0, -1.0, -2.0]]), np.array([3]))
    *echo, _, scored = await prompt.parts(rows)
    assert isinstance(scored, PromptLogprobs)
    assert [len(token.top) for part in echo if isinstance(part, PromptEcho) for token in part.logprobs or ()] == [0, 1]
    assert [len(token.top) for token in scored.tokens] == [2]


def test_alternatives_come_behind_the_token_in_their_order() -> None:
    prompt = Prompt(Sampling(logprobs=2))
    rows = LogprobsLists(np.array([[ord("c"), ord("a"), ord("b")]]), np.array([[-3.0, -1.0, -2.0]]), np.array([3]))
    prompt.step("c", scores=rows)
    delta = next(event for event in prompt.events if isinstance(event, TextDelta))
    (token,) = delta.logprobs or ()
    assert (token.text, token.logprob) == ("c", -3.0)
    assert [(top.text, top.logprob) for top in token.top] == [("a", -1.0), ("b", -2.0)]


def test_plain_response_gathers_after_its_first_token() -> None:
    prompt = Prompt(Sampling(), stream=False)
    assert prompt.sequence.gathers_until_s == -math.inf
    prompt.step("a")
    assert prompt.sequence.gathers_until_s > time.monotonic()
    prompt.sequence.gathered += [ord("b"), ord("c")]
    prompt.step("d", "length")
    assert [len(event.token_ids) for event in prompt.events if isinstance(event, TextDelta)] == [1, 3]
    assert (prompt.text(), prompt.outputs.completion_tokens) == ("abcd", 4)
    assert prompt.sequence.gathered == []


def test_choice_ended_by_its_reader_does_not_gather() -> None:
    def read(event: Event) -> tuple[Event]:
        prompt.outputs.end(0)
        return (event,)

    prompt = Prompt(Sampling(), stream=False, read=read)
    prompt.step("a")
    assert prompt.sequence.gathers_until_s == -math.inf


@pytest.mark.parametrize(
    ("sampling", "stream"), [(Sampling(), True), (Sampling(stop=("x",)), False), (Sampling(logprobs=0), False)]
)
def test_tokens_are_not_gathered_when_each_is_needed(sampling: Sampling, stream: bool) -> None:
    prompt = Prompt(sampling, stream=stream)
    prompt.step("a", scores=scores_of(ord("a")))
    assert prompt.sequence.gathers_until_s == -math.inf


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "abc")])
def test_gathered_end_token_is_text_only_when_included(include: bool, text: str) -> None:
    prompt = Prompt(Sampling(stop_token_ids=(ord("c"),), include_stop=include), stream=False)
    prompt.sequence.gathered += [ord("a"), ord("b")]
    assert prompt.step("c", "stop", ord("c"))
    assert (prompt.text(), prompt.outputs.completion_tokens) == (text, 3)
    assert prompt.events[-1] == ChoiceDone(0, "stop", ord("c"))
