"""The text of a choice: all of it up to the first stop string, and exactly the logprobs of the sent text."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokka.core import TokenLogprob
from tokka.engine.generation.stop_text import StopFilter

# Few letters, so that stop strings overlap and share prefixes. One letter has two bytes, one has four.
ALPHABET = "abä🦌"
pieces = st.lists(st.text(ALPHABET, max_size=4), max_size=12)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4)


@dataclass
class Run:
    """The result of a choice that was fed to its end."""

    stop: str | None = None
    sent: list[str] = field(default_factory=list)
    steps: int = 0

    @property
    def text(self) -> str:
        return "".join(self.sent)


def run(steps: list[str], stops: list[str], include_stop: bool = False, unarmed: int = 0) -> Run:
    choice = StopFilter(stops, include_stop)
    done = Run()
    for number, step in enumerate(steps):
        done.steps = number + 1
        if number < unarmed:
            done.sent.append(choice.feed(step))
            continue
        sent, done.stop = choice.feed_before_stop(step)
        done.sent.append(sent)
        if done.stop is not None:
            return done
    done.sent.append(choice.flush())
    return done


def expected(
    steps: list[str], stops: list[str], include_stop: bool = False, unarmed: int = 0
) -> tuple[str, str | None, int]:
    """Return text, stop and number of steps, found by a search in the whole text after each step."""
    text = ""
    for number, step in enumerate(steps):
        before = len(text)
        text += step
        if number < unarmed:
            continue
        # Only stop strings that end in this step count.
        found = [
            (at, order)
            for order, stop in enumerate(stops)
            if (at := text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if found:
            at, order = min(found)
            stop = stops[order]
            return text[:at] + (stop if include_stop else ""), stop, number + 1
    return text, None, len(steps)


@given(pieces, stop_lists)
@example(["a", "b"], ["ab"])
@example(["a", "ab"], ["aab", "ab"])
@example(["ab", "ä"], ["bb", "abä"])
def test_text_ends_before_the_earliest_complete_stop(steps: list[str], stops: list[str]) -> None:
    result = run(steps, stops)
    assert (result.text, result.stop, result.steps) == expected(steps, stops)


@given(pieces, stop_lists)
@example(["xa", "b", "c"], ["ab"])
@example(["a", "b", "b"], ["ab", "abb"])
def test_included_stop_is_where_the_text_ends(steps: list[str], stops: list[str]) -> None:
    result = run(steps, stops, include_stop=True)
    assert (result.text, result.stop, result.steps) == expected(steps, stops, include_stop=True)


@given(pieces, stop_lists, st.integers(0, 6))
@example(["ab", "a"], ["ab", "aba"], 1)
@example(["ab", "b"], ["ab", "aba"], 1)
def test_stop_completed_before_stopping_was_allowed_does_not_count(
    steps: list[str], stops: list[str], unarmed: int
) -> None:
    result = run(steps, stops, unarmed=unarmed)
    assert (result.text, result.stop, result.steps) == expected(steps, stops, unarmed=unarmed)


@given(st.text(ALPHABET, max_size=24), st.text(ALPHABET, min_size=1, max_size=4), st.data())
def test_how_the_text_was_split_changes_nothing(text: str, stop: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    steps = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(steps, [stop]).text == text.partition(stop)[0]


@given(pieces, stop_lists)
def test_sent_text_is_always_a_prefix_of_the_final_text(steps: list[str], stops: list[str]) -> None:
    whole = expected(steps, stops)[0]
    sent = ""
    for piece in run(steps, stops).sent:
        sent += piece
        assert whole.startswith(sent)


@given(pieces, stop_lists)
def test_no_more_is_held_back_than_the_beginning_of_a_stop(steps: list[str], stops: list[str]) -> None:
    choice = StopFilter(stops)
    fed = sent = ""
    for step in steps:
        piece, stop = choice.feed_before_stop(step)
        fed, sent = fed + step, sent + piece
        if stop is not None:
            return
        held = fed.removeprefix(sent)
        assert held == "" or any(other.startswith(held) for other in stops)


@given(pieces, stop_lists, st.booleans())
def test_flush_returns_all_that_was_held_back(steps: list[str], stops: list[str], include_stop: bool) -> None:
    choice = StopFilter(stops, include_stop)
    assert "".join(choice.feed(step) for step in steps) + choice.flush() == "".join(steps)


@given(pieces)
def test_without_stops_every_step_is_sent_at_once(steps: list[str]) -> None:
    choice = StopFilter(())
    assert [choice.feed_before_stop(step) for step in steps] == [(step, None) for step in steps]


def test_of_stops_that_begin_together_the_first_listed_wins() -> None:
    assert StopFilter(["ab", "abc"]).feed_before_stop("xabc") == ("x", "ab")
    assert StopFilter(["abc", "ab"]).feed_before_stop("xabc") == ("x", "abc")


@pytest.mark.parametrize("include_stop", [False, True])
def test_text_behind_the_stop_is_dropped(include_stop: bool) -> None:
    choice = StopFilter(["ab"], include_stop)
    choice.feed_before_stop("xabyz")
    assert choice.flush() == ""


# -- logprobs ---------------------------------------------------------------------------------------------------


def token(number: int, text: str) -> TokenLogprob:
    return TokenLogprob(number, text, text.encode(), -1.0)


@dataclass
class ScoredRun(Run):
    """A run with logprobs, and the ids of the tokens that were sent."""

    tokens: list[int] = field(default_factory=list)
    # The bytes of text that had been sent when each token was.
    sent_at: dict[int, int] = field(default_factory=dict)


def run_scored(steps: list[str], stops: list[str]) -> ScoredRun:
    """Feed each step as one token."""
    choice = StopFilter(stops)
    done = ScoredRun()

    def take(everything: bool = False) -> None:
        for scored in choice.take_logprobs(everything):
            done.tokens.append(scored.id)
            done.sent_at[scored.id] = len(done.text.encode())

    for number, step in enumerate(steps):
        choice.add_tokens([token(number, step)])
        sent, done.stop = choice.feed_before_stop(step)
        done.sent.append(sent)
        if done.stop is not None:
            take()
            return done
        take()
    done.sent.append(choice.flush())
    take(everything=True)
    return done


def beginnings(steps: list[str]) -> list[int]:
    return [len("".join(steps[:number]).encode()) for number in range(len(steps))]


@given(pieces, stop_lists)
def test_no_logprob_is_lost_when_length_ends_the_choice(steps: list[str], stops: list[str]) -> None:
    result = run_scored(steps, stops)
    if result.stop is None:
        assert result.tokens == list(range(len(steps)))


@given(pieces, stop_lists)
def test_stopped_choice_has_logprobs_of_tokens_that_begin_in_its_text(steps: list[str], stops: list[str]) -> None:
    steps = [step for step in steps if step]
    result = run_scored(steps, stops)
    if result.stop is not None:
        size = len(result.text.encode())
        assert result.tokens == [number for number, at in enumerate(beginnings(steps)) if at < size]


@given(pieces, stop_lists)
def test_a_logprob_is_not_sent_before_its_text_begins(steps: list[str], stops: list[str]) -> None:
    steps = [step for step in steps if step]
    result = run_scored(steps, stops)
    at = beginnings(steps)
    assert all(at[number] < sent for number, sent in result.sent_at.items())


def test_a_character_split_over_tokens_is_sent_with_all_of_its_tokens() -> None:
    choice = StopFilter(())
    raw = "🦌".encode()
    counts = []
    for number, byte in enumerate(raw):
        choice.add_tokens([TokenLogprob(number, "\ufffd", bytes([byte]), -1.0)])
        choice.feed("🦌" if number == len(raw) - 1 else "")
        counts.append(len(choice.take_logprobs()))
    assert counts == [0, 0, 0, 4]
