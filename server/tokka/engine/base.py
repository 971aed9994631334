"""The seam between the server and whatever produces tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from tokka.core import Event, GenerateRequest, Prompt
from tokka.engine_facts import EngineStats, ModelInfo

# Called with a phase ("installing model", "loading weights", "warming up") and a detail for people.
ReportPhase = Callable[[str, str], None]


class Engine(Protocol):
    """Seven methods, all required. `start` before anything else, `close` last and once."""

    async def start(self, report: ReportPhase) -> ModelInfo:
        """Load, warm up, and return when the first request would not stall. Raises StartupError."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield `Accepted`, then the events of every choice, then `Finished`. Works from the second event on.

        Raises InvalidRequest before `Accepted`, EngineError at any time, EngineDied when the engine itself is gone.
        Closing the generator stops the work.
        """
        ...

    async def tokenize(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        """Return the token ids `generate` would run for this prompt. Raises InvalidRequest, ServerOverloaded."""
        ...

    async def detokenize(self, token_ids: Sequence[int], tenant: str) -> str:
        """Return the text of the tokens, special ones included. Raises InvalidRequest, ServerOverloaded."""
        ...

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        """Return each token as the vocabulary has it; the ids are the engine's own. Raises ServerOverloaded."""
        ...

    async def ping(self) -> None:
        """Return when the engine has answered a call, between two steps. A wedged one never does."""
        ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None:
        """Stop every process of the engine, also a frozen one. Safe after a failed or interrupted `start`.

        Generations that still run end with EngineDied.
        """
        ...
