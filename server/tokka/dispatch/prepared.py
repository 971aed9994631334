"""A request between its rendering and its first step: its cost is known, and the engine has not worked on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from tokka.core import Accepted, ChatPrompt, GenerateRequest, Prompt, Usage
from tokka.dispatch.holdings import Holdings
from tokka.engine.base import Prepared, Sink
from tokka.errors import ContextLengthExceeded, Draining, EngineDied, EngineLost, RequestTimeout

# Maximum replicas that may go while they render one request.
_MOST_MOVES = 8
# Roles of messages at the start of a conversation that always stay.
_LASTING = ("system", "developer")


class PreparedRequest:
    """A request that an engine has rendered and counted, but not started."""

    accepted: Accepted
    _prepared: Prepared

    def __init__(self, request: GenerateRequest, holdings: Holdings, deadline: float | None) -> None:
        self.request = request
        self._holdings = holdings
        self._deadline = deadline

    @classmethod
    async def of(cls, request: GenerateRequest, holdings: Holdings, deadline: float | None) -> PreparedRequest:
        """Render a request on the replica that it holds.

        Raises InvalidRequest if the engine refuses it, RequestTimeout, ModelStarting, EngineDied, EngineLost.
        """
        prepared = cls(request, holdings, deadline)
        await prepared._render()
        return prepared

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that were rendered: those of the request, or shorter ones if it allows that."""
        return self.request.prompts

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.accepted.prompt_token_ids))

    @property
    def most_tokens(self) -> int:
        """The maximum tokens that the request can use, prompts included."""
        return self.prompt_tokens + sum(self.accepted.allowed_tokens) * self.request.sampling.n

    async def cap_tokens(self, tokens: int) -> None:
        """Limit a request without `max_tokens` to `tokens` in all, if that leaves enough for each choice."""
        sampling = self.request.sampling
        choices = len(self.accepted.prompt_token_ids) * sampling.n
        room = (tokens - self.prompt_tokens) // choices
        if sampling.max_tokens is None and self.most_tokens > tokens and room >= max(1, sampling.min_tokens):
            self.request = replace(self.request, max_tokens_cap=room)
            await self._render()

    async def settle(self) -> None:
        """Stay on the replica, or render the request on another one if this one is gone or has become the busier one.

        Call it once, after the admission. Raises ModelStarting if no replica is ready.
        """
        lease = self._holdings.lease
        if self._holdings.replicas.keeps(lease):
            lease.admit()
        else:
            self._holdings.take_replica(self.request)
            await self._render()

    def run(self, sink: Sink) -> Coroutine[Any, Any, Usage]:
        """Run the request, as `Prepared.run` says."""
        return self._prepared.run(sink)

    async def _prepare(self) -> Prepared:
        """Prepare the request, without its oldest turns if it does not fit and allows that."""
        turns, moves = 1, 0
        while True:
            try:
                return await self._holdings.lease.replica.engine.prepare(self.request)
            except ContextLengthExceeded:
                shorter = _without_oldest(self.request, turns) if self.request.drops_oldest else None
                if shorter is None:
                    raise
                self.request = shorter
            except (Draining, EngineDied, EngineLost):
                # Its replica has gone at this moment.
                moves += 1
                if moves > _MOST_MOVES or not self._holdings.replicas.others(self._holdings.lease.replica):
                    raise
                self._holdings.take_replica(self.request)
                continue
            # A conversation may have thousands of turns, and each attempt renders all that are left.
            turns *= 2

    async def _render(self) -> None:
        try:
            async with asyncio.timeout(left_s(self._deadline)):
                self._prepared = await self._prepare()
        except TimeoutError:
            raise RequestTimeout("The request timed out before the engine accepted it.") from None
        self.accepted = self._prepared.accepted


def _without_oldest(request: GenerateRequest, turns: int) -> GenerateRequest | None:
    """Return a chat without its oldest turns; None if it has no more of them, or holds images.

    A turn begins with a message of the user. The last one stays, and so do the system messages at the start.
    """
    (prompt,) = request.prompts
    if not isinstance(prompt, ChatPrompt) or prompt.images:
        return None
    messages = prompt.messages
    start = next((at for at, message in enumerate(messages) if message["role"] not in _LASTING), len(messages))
    begins = [at for at, message in enumerate(messages) if message["role"] == "user" and at > start]
    if not begins:
        return None
    kept = (*messages[:start], *messages[begins[min(turns, len(begins)) - 1] :])
    return replace(request, prompts=(replace(prompt, messages=kept),))


def left_s(deadline: float | None) -> float | None:
    """Return the seconds until a deadline, at least 0; None without a deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
