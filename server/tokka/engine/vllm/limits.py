"""How large what a constraint becomes may grow while it runs: the same where it is tried out and in the engine."""

from __future__ import annotations

from typing import Any

# Of the processor, to compile it and to try it out. What takes a tenth of this is large; in the engine it is compiled
# once more, beside the steps.
COMPILE_S = 1.0
# Of the library's automaton, which grows with what is written. A state takes 0.4 to 1.3 KiB in each choice; a character
# of a string of bounded length makes 4 of them, one of a nasty expression a thousand.
STATES = 20_000
# A request of more choices has fewer for each, so that it takes no more memory than some tens of requests.
FEW_CHOICES = 8
STATES_OF_MANY = 5_000
# For one mask. Ordinary ones need a fifth of the first, which is about 3.5 ms, and a half of the second, about 1 ms.
_STEP_FUEL = 50_000
_STEP_ITEMS = 20_000


def states_for(choices: int) -> int:
    return STATES if choices <= FEW_CHOICES else STATES_OF_MANY


def with_limit(grammar: str, states: int, bound: str = "") -> str:
    """Return a grammar as the engine takes it. `bound`: a second one, in Lark, that its texts follow where they can."""
    return f"{states} {len(bound)}\n{bound}{grammar}"


def with_tag(limited: str, tag: str) -> str:
    """Return a grammar of `with_limit` under a tag without whitespace.

    The engine's cache (`guidance.py`) finds equal texts only: grammars of two tags are compiled apart.
    """
    head, _, grammars = limited.partition("\n")
    return f"{head} {tag}\n{grammars}"


def matcher_of(tokenizer: Any, limited: str) -> Any:
    """Return the library's matcher of what `with_limit` made. It may be one that has failed."""
    return matchers_of(tokenizer, limited)[0]


def matchers_of(tokenizer: Any, limited: str) -> tuple[Any, Any | None]:
    """As `matcher_of`, with the matcher of the bound if there is one."""
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
