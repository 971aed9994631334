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


def with_limit(grammar: str, states: int) -> str:
    """Return a grammar as the engine takes it."""
    return f"{states}\n{grammar}"


def with_tag(limited: str, tag: str) -> str:
    """Return a grammar of `with_limit` under a tag without whitespace.

    The engine's cache (`guidance.py`) finds equal texts only: grammars of two tags are compiled apart.
    """
    states, _, grammar = limited.partition("\n")
    return f"{states} {tag}\n{grammar}"


def matcher_of(tokenizer: Any, limited: str) -> Any:
    """Return the library's matcher of what `with_limit` made. It may be one that has failed."""
    from llguidance import LLMatcher, LLParserLimits

    head, _, grammar = limited.partition("\n")
    states = head.partition(" ")[0]
    if not states.isdecimal():
        raise ValueError("the grammar has no limit")
    limits = LLParserLimits(
        max_lexer_states=int(states), step_lexer_fuel=_STEP_FUEL, step_max_items=_STEP_ITEMS, verbose_errors=False
    )
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
