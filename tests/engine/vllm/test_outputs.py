"""vLLM's outputs, written by hand as it gives them, as our events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tokka.core import ChoiceDone, Event, PromptEcho, Sampling, TextDelta
from tokka.engine.vllm.outputs import PromptOutputs
from tokka.engine.vllm.tokens import TokenTable
from tokka.errors import EngineError

EOS = 0


class Tokenizer:
    """Byte-level: id 1 to 255 is that byte as GPT-2's vocabulary writes it, 0 is the end token."""

    all_special_ids = (EOS,)

    def tokenize(self, text: str) -> list[str]:
        return list(text.replace(" ", "Ġ"))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        if token == EOS:
            return "</s>"
        return "Ġ" if token == ord(" ") else chr(token) if token < 256 else None


def part(text: str, index: int = 0, **fields: Any) -> SimpleNamespace:
    """One CompletionOutput; its tokens are the characters of the text unless given."""
    given = {"token_ids": [ord(char) for char in text], "logprobs": None, "finish_reason": None, "stop_reason": None}
    return SimpleNamespace(index=index, text=text, cumulative_logprob=None, **{**given, **fields})


def output(*parts: SimpleNamespace, cached: int = 0) -> SimpleNamespace:
    return SimpleNamespace(outputs=list(parts), num_cached_tokens=cached, prompt_logprobs=None)


def outputs_of(sampling: Sampling, *, copies: int = 1, limit: int = 100, prompt_index: int = 0) -> PromptOutputs:
    return PromptOutputs(prompt_index, sampling, copies, limit, TokenTable(Tokenizer()))


def run(outputs: PromptOutputs, *steps: SimpleNamespace) -> list[Event]:
    return [event for step in steps for event in outputs.feed(step)]


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.index == index)


def test_text_and_end_are_passed_on_and_counted() -> None:
    outputs = outputs_of(Sampling())
    events = run(outputs, output(part("He"), cached=7), output(part("i", finish_reason="length")))
    assert text_of(events) == "Hei"
    assert events[-1] == ChoiceDone(0, "length")
    assert (outputs.completion_tokens, outputs.cached_tokens) == (3, 7)


def test_greedy_copies_are_numbered_after_their_prompt() -> None:
    outputs = outputs_of(Sampling(n=3), copies=3, prompt_index=2)
    events = run(outputs, output(part("a", finish_reason="stop")))
    assert [event.index for event in events if isinstance(event, ChoiceDone)] == [6, 7, 8]
    assert text_of(events, 8) == "a"
    assert outputs.completion_tokens == 3


def test_stop_is_cut_and_of_one_step_the_first_in_the_text_counts() -> None:
    # vLLM looked for "b" first and ended the text there.
    events = run(
        outputs_of(Sampling(stop=("b", "a"))),
        output(part("x")),
        output(part(" a b", finish_reason="stop", stop_reason="b")),
    )
    assert text_of(events) == "x "
    assert events[-1] == ChoiceDone(0, "stop", "a")


def test_stop_that_did_not_count_yet_is_text_even_in_merged_steps() -> None:
    sampling = Sampling(stop=(".",), min_tokens=3)
    events = run(outputs_of(sampling), output(part("a.b.", finish_reason="stop", stop_reason=".")))
    assert text_of(events) == "a.b"
    assert events[-1] == ChoiceDone(0, "stop", ".")


@pytest.mark.parametrize("include", [False, True])
def test_text_of_a_stop_token_is_shown_only_when_asked_for(include: bool) -> None:
    sampling = Sampling(stop=("unseen",), stop_token_ids=(ord("!"),), include_stop=include)
    events = run(outputs_of(sampling), output(part("Hi!", finish_reason="stop", stop_reason=ord("!"))))
    assert text_of(events) == ("Hi!" if include else "Hi")
    assert events[-1] == ChoiceDone(0, "stop", ord("!"))


def test_end_token_has_no_logprob_in_the_answer() -> None:
    scores = [{token: SimpleNamespace(logprob=-0.5, rank=1)} for token in (ord("H"), EOS)]
    ended = part("H", token_ids=[ord("H"), EOS], logprobs=scores, finish_reason="stop")
    events = run(outputs_of(Sampling(logprobs=0)), output(ended))
    delta = next(event for event in events if isinstance(event, TextDelta))
    assert [token.text for token in delta.logprobs or ()] == ["H"]
    assert delta.token_ids == (ord("H"), EOS)


def test_hidden_special_token_takes_no_room_before_a_stop() -> None:
    special = {"token_ids": [ord("a"), EOS, ord("b"), ord("!")]}
    scores = [{token: SimpleNamespace(logprob=-0.5, rank=1)} for token in special["token_ids"]]
    ended = part("ab!", logprobs=scores, finish_reason="stop", stop_reason="!", **special)
    events = run(outputs_of(Sampling(logprobs=0, stop=("!",))), output(ended))
    delta = next(event for event in events if isinstance(event, TextDelta))
    assert delta.text == "ab"
    assert [token.text for token in delta.logprobs or ()] == ["a", "</s>", "b"]


def test_special_token_before_an_echoed_text_takes_no_room_in_it() -> None:
    scored = SimpleNamespace(prompt_logprobs=[None, {ord("H"): SimpleNamespace(logprob=-1.0, rank=1)}])
    echo = outputs_of(Sampling(logprobs=0)).echo(scored, "H", [EOS, ord("H")])
    assert b"".join(token.bytes for token in echo.logprobs or ()) == b"H"


def test_prompt_that_is_only_scored_has_no_completion() -> None:
    outputs = outputs_of(Sampling(max_tokens=0), limit=0)
    assert run(outputs, output(part("x", finish_reason="length"))) == [ChoiceDone(0, "length")]
    assert outputs.completion_tokens == 0


def test_echo_scores_every_token_but_the_first() -> None:
    scored = SimpleNamespace(prompt_logprobs=[None, {ord("i"): SimpleNamespace(logprob=-1.0, rank=4)}])
    echo = outputs_of(Sampling(logprobs=1)).echo(scored, "Hi", [ord("H"), ord("i")])
    assert isinstance(echo, PromptEcho)
    assert [(token.text, token.logprob) for token in echo.logprobs or ()] == [("H", None), ("i", -1.0)]


@pytest.mark.parametrize("reason", ["error", "abort", "repetition"])
def test_an_end_that_is_no_answer_is_an_error(reason: str) -> None:
    with pytest.raises(EngineError):
        run(outputs_of(Sampling()), output(part("", finish_reason=reason)))
