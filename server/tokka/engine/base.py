"""The interface between the server and an engine that produces tokens."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from tokka.core import Accepted, Event, GenerateRequest, Prompt, Usage
from tokka.engine_facts import EngineStats, ModelInfo

# Takes a start-up phase ("installing model", "loading weights", "warming up") and a detail for people.
ReportPhase = Callable[[str, str], None]


class Sink(Protocol):
    """Receives the events of a running request, in order, on the event loop."""

    def take(self, event: Event) -> bool:
        """Take an event at once. Runs inside the engine's step, so it is short and never waits.

        Returns whether there is room for the next. If not, call `give` next: the client reads more slowly than the
        engine generates.
        """
        ...

    async def give(self, event: Event) -> None:
        """Take an event, a long one in parts. Return when there is room for the next. For the request's task only."""
        ...


class Prepared(Protocol):
    """A request that the engine has rendered, counted and checked, and not started. It holds no resources."""

    @property
    def accepted(self) -> Accepted: ...

    def run(self, sink: Sink) -> Coroutine[Any, Any, Usage]:
        """Generate or embed. Pass every event to the sink, and return when every choice has ended.

        Cancelling the call stops the work. Raises EngineError at any time, EngineDied if the engine itself is gone,
        SlowReader if the sink stays full. The sink then has all events before the error.
        """
        ...


class Engine(Protocol):
    """Eight required methods. Call `start` first and `close` once, last."""

    async def start(self, report: ReportPhase) -> ModelInfo:
        """Load and warm up the model. Return when the first request would not stall. Raises StartupError."""
        ...

    async def prepare(self, request: GenerateRequest) -> Prepared:
        """Render, count and check a request of any task. Raises InvalidRequest, ServerOverloaded, EngineDied."""
        ...

    async def tokenize(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        """Return the token ids that `prepare` would use for this prompt. Raises InvalidRequest, ServerOverloaded."""
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
