"""Inside the engine's process: vLLM's backend for constraints, taking grammars as grammar.py has made them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from tokka.engine.vllm.limits import matcher_of

# Each of at most the memory that grammar.py may use; most take a hundredth.
KEPT = 32


def take_ready_grammars() -> None:
    """Have vLLM use what was tried out, and nothing else; and end a request whose grammar fails while it runs."""
    from vllm.v1 import structured_output
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend, GuidanceGrammar

    class Grammar(GuidanceGrammar):  # type: ignore[misc]
        def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
            accepted: bool = super().accept_tokens(request_id, tokens)
            # At a limit of its own the library allows the end token only: the answer would seem complete.
            return accepted and not self.ll_matcher.is_error()

    class Backend(GuidanceBackend):  # type: ignore[misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            self._compiled: OrderedDict[str, Any] = OrderedDict()

        def compile_grammar(self, _type: Any, grammar_spec: str, stop_token_ids: Any = None) -> Grammar:
            """Compile once for all choices of a request, and for those that come again; copies cost nothing."""
            matcher = self._compiled.pop(grammar_spec, None)
            if matcher is None:
                matcher = matcher_of(self.ll_tokenizer, grammar_spec)
                if matcher.is_error():
                    raise ValueError("the grammar does not compile")
            self._compiled[grammar_spec] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Grammar(matcher.deep_copy(), self.ll_tokenizer, self.vocab_size)

    structured_output.GuidanceBackend = Backend
