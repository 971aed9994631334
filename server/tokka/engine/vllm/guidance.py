"""Runs in the engine process: vLLM's backend for constraints, which takes the grammars that compiler.py makes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from tokka.engine.grammars.limits import matchers_of

# Maximum cached grammars. Each takes at most the memory that compiler.py may use; most take a hundredth of it.
KEPT = 32


def take_ready_grammars() -> None:
    """Make vLLM use only grammars that were tried out, and end a request if its grammar fails during generation."""
    from vllm.v1 import structured_output
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    Grammar = _bounded_grammar()  # noqa: N806

    class Backend(GuidanceBackend):  # type: ignore[misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            self._compiled: OrderedDict[str, Any] = OrderedDict()

        def compile_grammar(self, _type: Any, grammar_spec: str, stop_token_ids: Any = None) -> Any:
            """Compile once for all choices of a request, unless threads meet, and for repeats. Copies are free."""
            matchers = self._compiled.pop(grammar_spec, None)
            if matchers is None:
                matchers = matchers_of(self.ll_tokenizer, grammar_spec)
                if any(matcher is not None and matcher.is_error() for matcher in matchers):
                    raise ValueError("the grammar does not compile")
            self._compiled[grammar_spec] = matchers
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            matcher, bound = matchers
            grammar = Grammar(matcher.deep_copy(), self.ll_tokenizer, self.vocab_size)
            grammar.bound = bound and bound.deep_copy()
            return grammar

    structured_output.GuidanceBackend = Backend


def _bounded_grammar() -> Any:
    """Return a subclass of vLLM's grammar that also follows a bound."""
    from vllm.v1.structured_output.backend_guidance import GuidanceGrammar

    class Grammar(GuidanceGrammar):  # type: ignore[misc]
        # The matcher of the bound. None if there is none, or after a token that the bound does not allow.
        bound: Any = None

        def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
            accepted: bool = super().accept_tokens(request_id, tokens)
            if self.bound is not None and not self.bound.consume_tokens(self._without_end(tokens)):
                self.bound = None
            # At a limit of its own the library allows only the end token, so a cut text would seem complete.
            return accepted and not self.ll_matcher.is_error()

        def fill_bitmask(self, bitmask: Any, idx: int) -> None:
            super().fill_bitmask(bitmask, idx)
            if self.bound is not None:
                _narrow(bitmask, idx, self.bound)

        def validate_tokens(self, tokens: list[int]) -> list[int]:
            accepted: list[int] = super().validate_tokens(tokens)
            if self.bound is None:
                return accepted
            within = self.bound.validate_tokens(self._without_end(accepted))
            return accepted if within == len(self._without_end(accepted)) else accepted[:within]

        def rollback(self, num_tokens: int) -> None:
            # The bound never receives the end token.
            end = int(self.terminated)
            super().rollback(num_tokens)
            if self.bound is not None and num_tokens > end:
                self.bound.rollback(num_tokens - end)

        def reset(self) -> None:
            super().reset()
            if self.bound is not None:
                self.bound.reset()

        def _without_end(self, tokens: list[int]) -> list[int]:
            return [token for token in tokens if token != self.ll_tokenizer.eos_token]

    return Grammar


def _narrow(bitmask: Any, place: int, bound: Any) -> None:
    """Remove the tokens that the bound forbids from a row of the mask, unless none would be left."""
    from llguidance.torch import fill_next_token_bitmask

    row = bitmask[place : place + 1]
    within = row.clone()
    fill_next_token_bitmask(bound, within, 0)
    within &= row
    if within.any():
        row.copy_(within)
