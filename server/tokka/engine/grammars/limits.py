"""Limits for a compiled grammar, the same in the trial run and in the engine."""

from __future__ import annotations

from typing import Any

# Maximum CPU seconds to compile a constraint and try it out. A large one takes a tenth of this. The engine compiles it
# again, beside its steps.
COMPILE_S = 1.0
# Maximum states of the library's automaton, which grows with the generated text. A state takes 0.4 to 1.3 KiB in each
# choice. A character of a string with bounded length adds 4 states; one of a nasty expression adds a thousand.
STATES = 20_000
# Maximum choices of a request that get STATES each. Beyond it each gets STATES_IF_MANY_CHOICES, so the request takes no
# more memory than some tens of requests.
FEW_CHOICES = 8
STATES_IF_MANY_CHOICES = 5_000
# Maximum lexer fuel (about 3.5 ms) and parser items (about 1 ms) for one mask. Ordinary masks need a fifth of the fuel
# and half of the items.
_STEP_FUEL = 50_000
_STEP_ITEMS = 20_000


def states_for(choices: int) -> int:
    return STATES if choices <= FEW_CHOICES else STATES_IF_MANY_CHOICES


def with_limit(grammar: str, states: int, bound: str = "") -> str:
    """Return a grammar in the engine's format. `bound`: a second grammar, in Lark, that texts follow where they can."""
    return f"{states} {len(bound)}\n{bound}{grammar}"


def with_tag(limited: str, tag: str) -> str:
    """Add a tag without whitespace to a grammar of `with_limit`.

    The engine's cache (`guidance.py`) finds only equal texts, so grammars with different tags are compiled separately.
    """
    head, _, grammars = limited.partition("\n")
    return f"{head} {tag}\n{grammars}"


def matcher_of(tokenizer: Any, limited: str) -> Any:
    """Return the library's matcher for a grammar of `with_limit`. The matcher may be in an error state."""
    return matchers_of(tokenizer, limited)[0]


def matchers_of(tokenizer: Any, limited: str) -> tuple[Any, Any | None]:
    """Return the matchers of the grammar and of its bound, if there is one. Raises ValueError without a limit."""
    from llguidance import LLMatcher, LLParserLimits

    head, _, grammars = limited.partition("\n")
    numbers = head.split(" ")[:2]
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)):
        raise ValueError("the grammar has no limit")
    states, chars = map(int, numbers)
    limits = LLParserLimits(
        max_lexer_states=states, step_lexer_fuel=_STEP_FUEL, step_max_items=_STEP_ITEMS, verbose_errors=False
    )
    bound = LLMatcher(tokenizer, grammars[:chars], log_level=0, limits=limits) if chars else None
    return LLMatcher(tokenizer, grammars[chars:], log_level=0, limits=limits), bound
