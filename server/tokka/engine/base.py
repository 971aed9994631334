"""The interface between the server and an engine that produces tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from tokka.core import Event, GenerateRequest, Prompt
from tokka.engine_facts import EngineStats, ModelInfo

# Takes a start-up phase ("installing model", "loading weights", "warming up") and a detail for people.
ReportPhase = Callable[[str, str], None]


class Engine(Protocol):
    """Eight required methods. Call `start` first and `close` once, last."""

    async def start(self, report: ReportPhase) -> ModelInfo:
        """Load and warm up the model. Return when the first request would not stall. Raises StartupError."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield `Accepted`, then the events of every choice, then `Finished`.

        Work starts when the caller asks for the second event. Closing the generator stops it. Raises InvalidRequest
        before `Accepted`, EngineError at any time, EngineDied if the engine itself is gone.
        """
        ...

    async def tokenize(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        """Return the token ids that `generate` would use for this prompt. Raises InvalidRequest, ServerOverloaded."""
        ...

    async def detokenize(self, token_ids: Sequence[int], tenant: str) -> str:
        """Return the text of the tokens, including special tokens. Raises InvalidRequest, ServerOverloaded."""
        ...

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        """Return each token as it is in the vocabulary. The ids must come from this engine. Raises ServerOverloaded."""
        ...

    async def ping(self) -> None:
        """Return when the engine has answered a call between two steps. A wedged engine never answers."""
        ...

    def stats(self) -> EngineStats:
        """Return the current counters without blocking."""
        ...

    async def close(self) -> None:
        """Stop every engine process, including a frozen one. Safe after a failed or interrupted `start`.

        Running generations end with EngineDied.
        """
        ...
