"""What an engine tells of itself: the model it serves, and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of the served model once the engine is ready."""

    max_model_len: int
    vocab_size: int
    engine: str
    engine_version: str
    has_chat_template: bool
    # Sequences the engine works on at once, over all copies of the model.
    max_running: int = 256
    # Tokens it computes in one step, prompts included, over all copies; None: as many as there are.
    step_tokens: int | None = None
    # Tokens that its memory for running requests holds, over all copies; None: no bound.
    kv_tokens: int | None = None
    copies: int = 1
    # It keeps what it has computed of prompts for later ones that begin alike.
    caches_prefixes: bool = False
    # What its steps cost, as measured before it was ready.
    costs: StepCosts | None = None
    # GPUs it is spread over, all copies of the model together; 0 on a CPU.
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for gauges, admission and the watchdog; taking it never blocks."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    # Given to the engine and not finished, as far as both sides know.
    unfinished: int = 0
    # Steps that worked on something, since the start; and requests put back for want of memory.
    steps: int = 0
    preemptions: int = 0
    costs: StepCosts | None = None
    # Why the engine can serve no more; None while it can, as far as it knows itself.
    death: str | None = None
