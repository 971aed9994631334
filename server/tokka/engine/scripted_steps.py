"""Steps of the scripted engine, which simulate a GPU's timing in real time.

A step takes `step_s`, plus `per_choice_s` for each decoding choice and `per_prompt_token_s` for each prompt token that
it computes. It computes at most `step_tokens` prompt tokens, and at most half of them for one prompt unless it runs
alone. Each choice with a computed prompt gets one token per step. All choices share `kv_tokens` of memory. When it is
full, the sequence that started last is put back and computed again, as in vLLM.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tokka.engine_facts import EngineStats
from tokka.step_costs import StepCostLearner, StepCosts

# Seconds of delay beyond which the steps do not catch up: the program was suspended meanwhile.
_LATE_S = 0.25


@dataclass(frozen=True, slots=True)
class StepModel:
    """Timing and limits of a step, in seconds, tokens and choices. 0 in `step_tokens` or `kv_tokens`: no limit."""

    step_s: float
    per_choice_s: float = 0.0
    per_prompt_token_s: float = 0.0
    step_tokens: int = 0
    max_running: int = 256
    kv_tokens: int = 0

    @property
    def chunk(self) -> int:
        """The maximum tokens of one prompt in a step."""
        return max(1, self.step_tokens // 2)

    def seconds(self, decoding: int, prompt_tokens: int) -> float:
        return self.step_s + self.per_choice_s * decoding + self.per_prompt_token_s * prompt_tokens


@dataclass(eq=False, slots=True)
class ScriptedSequence:
    """One prompt and its choices. Each choice gets `limit` tokens, unless the sequence is removed earlier.

    A choice that is resumed has some of them from the start. They are computed with the prompt.
    """

    prompt_tokens: int
    choices: int
    limit: int
    # Tokens given to each choice, and the future of the task that waits for the next one.
    given: int = 0
    waiter: asyncio.Future[None] | None = None
    to_compute: int = field(init=False)
    # Computed tokens that occupy memory.
    held: int = 0
    # The sequence gets no more tokens.
    is_ended: bool = False

    def __post_init__(self) -> None:
        self.to_compute = self.prompt_tokens + self.given * self.choices

    @property
    def is_done(self) -> bool:
        return self.given >= self.limit

    async def token(self, number: int) -> None:
        """Return when each choice has `number` tokens, or when it gets no more."""
        while self.given < number and not self.is_ended:
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None

    def give(self) -> None:
        self.given += 1
        self.held += self.choices
        self._wake()

    def end(self) -> None:
        self.is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class StepLoop:
    """Runs steps while there is work. `is_frozen`: returns whether the engine is frozen."""

    def __init__(self, model: StepModel, is_frozen: Callable[[], bool]) -> None:
        self._model = model
        self._is_frozen = is_frozen
        self._running: list[ScriptedSequence] = []
        self._waiting: deque[ScriptedSequence] = deque()
        self._task: asyncio.Task[None] | None = None
        self._learner = StepCostLearner()
        self._measure()
        self.steps = 0
        self.preemptions = 0

    def add(self, sequence: ScriptedSequence) -> None:
        self._waiting.append(sequence)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def remove(self, sequence: ScriptedSequence) -> None:
        """Remove a sequence, finished or not."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def stats(self) -> EngineStats:
        running = sum(sequence.choices for sequence in self._running)
        waiting = sum(sequence.choices for sequence in self._waiting)
        kv_tokens = self._model.kv_tokens
        return EngineStats(
            running=running,
            waiting=waiting,
            kv_cache_usage=self._held() / kv_tokens if kv_tokens else 0.0,
            unfinished=running + waiting,
            steps=self.steps,
            preemptions=self.preemptions,
            costs=self.costs(),
        )

    def end(self) -> None:
        """Stop the steps and end all sequences."""
        if self._task is not None:
            self._task.cancel()
        for sequence in (*self._running, *self._waiting):
            sequence.end()

    def costs(self) -> StepCosts | None:
        return self._learner.costs

    def _measure(self) -> None:
        """Learn the costs that a real engine measures before it is ready: one choice, a full prompt step, a batch."""
        model, batch = self._model, min(32, self._model.max_running)
        for decoding, tokens in ((1, 0),) * 6 + ((0, model.step_tokens),) * 3 + ((batch, 0),) * 6:
            self._learner.add(model.seconds(decoding, tokens), decoding, tokens)

    async def _run(self) -> None:
        ends_s = ended_s = time.monotonic()
        while (self._running or self._waiting) and not self._is_frozen():
            self._take_in()
            decoding, finishing, computed = self._plan()
            seconds = self._model.seconds(sum(sequence.choices for sequence in decoding), computed)
            now_s = time.monotonic()
            # Steps follow a schedule: a late wake-up shortens the next step, so the average timing is exact.
            ends_s = seconds + (ends_s if now_s - ends_s < _LATE_S else now_s)
            await asyncio.sleep(max(0.0, ends_s - now_s))
            began_s, ended_s = ended_s, time.monotonic()
            self._end_step(ended_s - began_s, decoding, finishing, computed)

    def _take_in(self) -> None:
        """Start waiting sequences in order while there is room."""
        model, running = self._model, sum(sequence.choices for sequence in self._running)
        while self._waiting and running + self._waiting[0].choices <= model.max_running:
            first = self._waiting[0]
            if model.kv_tokens and self._running and self._held() + first.to_compute > model.kv_tokens:
                return
            running += first.choices
            self._running.append(self._waiting.popleft())

    def _plan(self) -> tuple[list[ScriptedSequence], list[ScriptedSequence], int]:
        """Return the step's decoding sequences, the sequences with prompts that it completes, and its prompt tokens."""
        self._make_room()
        model = self._model
        decoding, finishing, computed = [], [], 0
        for sequence in self._running:
            if not sequence.to_compute:
                decoding.append(sequence)
                continue
            part = sequence.to_compute
            if model.step_tokens:
                most = model.step_tokens if len(self._running) == 1 else model.chunk
                part = min(part, most, model.step_tokens - computed)
            sequence.to_compute -= part
            sequence.held += part
            computed += part
            if part and not sequence.to_compute:
                finishing.append(sequence)
        return decoding, finishing, computed

    def _make_room(self) -> None:
        """Put back the sequences that started last until there is room for each choice's next token."""
        while self._model.kv_tokens and len(self._running) > 1:
            growth = sum(sequence.choices for sequence in self._running)
            if self._held() + growth <= self._model.kv_tokens:
                return
            last = self._running.pop()
            last.to_compute, last.held = last.prompt_tokens + last.given * last.choices, 0
            self._waiting.appendleft(last)
            self.preemptions += 1

    def _end_step(
        self, seconds: float, decoding: list[ScriptedSequence], finishing: list[ScriptedSequence], computed: int
    ) -> None:
        self.steps += 1
        context = sum(sequence.held for sequence in decoding)
        self._learner.add(seconds, sum(sequence.choices for sequence in decoding), computed, context)
        for sequence in (*decoding, *finishing):
            sequence.give()
        self._running = [sequence for sequence in self._running if not sequence.is_done]

    def _held(self) -> int:
        return sum(sequence.held for sequence in self._running)
