"""The prefix index: it finds computed prefixes by their text, and forgets prefixes that the engine has dropped."""

from __future__ import annotations

from array import array

import pytest

from tokka.core import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from tokka.engine.prefixes import PrefixIndex

LONG = "".join(f"Sentence {number} of a document. " for number in range(1000))


def chat(*contents: str) -> ChatPrompt:
    return ChatPrompt(tuple({"role": "user", "content": content} for content in contents))


def index(kv_tokens: int | None = 100_000) -> PrefixIndex:
    return PrefixIndex(kv_tokens)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TextPrompt(LONG), TextPrompt(LONG + "And a question.")),
        (chat(LONG), chat(LONG, "An answer.", "A question.")),
        (TokensPrompt(array("I", range(20_000))), TokensPrompt(array("I", [*range(20_000), 5]))),
    ],
    ids=["text", "chat", "tokens"],
)
def test_beginning_that_was_computed_is_found(before: Prompt, after: Prompt) -> None:
    prefixes = index()
    first = prefixes.look(None, [before])
    assert first.share == 0.0
    prefixes.add(first)
    assert prefixes.look(None, [after]).share > 0.95


def test_same_text_of_another_salt_is_not_found() -> None:
    prefixes = index()
    prefixes.add(prefixes.look("one", [TextPrompt(LONG)]))
    assert prefixes.look("other", [TextPrompt(LONG)]).share == 0.0


def test_other_beginning_is_not_found() -> None:
    prefixes = index()
    prefixes.add(prefixes.look(None, [TextPrompt(LONG)]))
    assert prefixes.look(None, [TextPrompt("Today. " + LONG)]).share == 0.0


def test_half_a_beginning_is_found_by_half() -> None:
    prefixes = index()
    prefixes.add(prefixes.look(None, [TextPrompt(LONG[: len(LONG) // 2])]))
    assert prefixes.look(None, [TextPrompt(LONG)]).share == pytest.approx(0.5, abs=0.1)


def test_index_forgets_prefixes_that_were_not_cached() -> None:
    prefixes = index()
    prefixes.add(prefixes.look(None, [TextPrompt(LONG)]))
    again = prefixes.look(None, [TextPrompt(LONG)])
    prefixes.correct(again, 0.9)
    assert prefixes.look(None, [TextPrompt(LONG)]).share == 1.0
    prefixes.correct(again, 0.0)
    assert prefixes.look(None, [TextPrompt(LONG)]).share == 0.0


def test_index_holds_as_much_as_the_engine() -> None:
    prefixes = index(kv_tokens=4096)
    for number in range(20):
        prefixes.add(prefixes.look(None, [TextPrompt(f"{number} {LONG[:5000]}")]))
    assert len(prefixes._known) <= 4096 // 256
    assert prefixes.look(None, [TextPrompt(f"19 {LONG[:5000]}")]).share == 1.0
    assert prefixes.look(None, [TextPrompt(f"0 {LONG[:5000]}")]).share == 0.0


def test_engine_that_caches_nothing_is_expected_to_have_nothing() -> None:
    prefixes = index(None)
    prefixes.add(prefixes.look(None, [TextPrompt(LONG)]))
    assert prefixes.look(None, [TextPrompt(LONG)]) == prefixes.look(None, [])
