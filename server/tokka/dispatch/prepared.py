"""A request between its rendering and its first step: its cost is known, and the engine has not worked on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from tokka.core import Accepted, Event, GenerateRequest
from tokka.engine.supervision.supervisor import Supervisor
from tokka.errors import RequestTimeout


class PreparedRequest:
    """A request that an engine has rendered and counted, but not started."""

    def __init__(self, request: GenerateRequest, supervisor: Supervisor, deadline: float | None) -> None:
        self._request = request
        self._supervisor = supervisor
        self._deadline = deadline

    @classmethod
    async def of(cls, request: GenerateRequest, supervisor: Supervisor, deadline: float | None) -> PreparedRequest:
        """Render a request. Raises InvalidRequest if the engine refuses it, RequestTimeout, ModelStarting."""
        prepared = cls(request, supervisor, deadline)
        await prepared._render()
        return prepared

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.accepted.prompt_token_ids))

    @property
    def most_tokens(self) -> int:
        """The maximum tokens that the request can use, prompts included."""
        return self.prompt_tokens + sum(self.accepted.allowed_tokens) * self._request.sampling.n

    async def cap_tokens(self, tokens: int) -> None:
        """Limit a request without `max_tokens` to `tokens` in all, if that leaves enough for each choice."""
        sampling = self._request.sampling
        choices = len(self.accepted.prompt_token_ids) * sampling.n
        room = (tokens - self.prompt_tokens) // choices
        if sampling.max_tokens is None and self.most_tokens > tokens and room >= max(1, sampling.min_tokens):
            self._request = replace(self._request, max_tokens_cap=room)
            await self._again()

    async def ensure_live_engine(self) -> None:
        """Render the request again if its engine is gone. Raises ModelStarting if no new engine is ready yet."""
        engine = self._supervisor.engine()
        if engine is not self._engine:
            await self._again()

    async def aclose(self) -> None:
        await self.events.aclose()

    async def _again(self) -> None:
        await self.aclose()
        await self._render()

    async def _render(self) -> None:
        self._engine = self._supervisor.engine()
        self.engine_number = self._supervisor.starts
        self.events = self._engine.generate(self._request)
        try:
            accepted = await next_event(self.events, self._deadline)
        except TimeoutError:
            raise RequestTimeout("The request timed out before the engine accepted it.") from None
        if not isinstance(accepted, Accepted):
            raise RuntimeError(f"the engine began with {type(accepted).__name__} instead of Accepted")
        self.accepted = accepted


def left_s(deadline: float | None) -> float | None:
    """Return the seconds until a deadline, at least 0; None without a deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


async def next_event(events: AsyncGenerator[Event, None], deadline: float | None) -> Event:
    """Return the next event. Raises TimeoutError at the deadline."""
    if deadline is None:
        return await anext(events)
    # The timeout covers only this wait: if it spanned a `yield`, it would cancel the consumer.
    async with asyncio.timeout(left_s(deadline)):
        return await anext(events)
