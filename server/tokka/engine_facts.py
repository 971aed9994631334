"""Data that an engine reports: the model it serves, and its current statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokka.step_costs import StepCosts
from tokka.tasks import Task

# Why an engine stopped serving: it exited, made no step despite work, did not reply to a call, or failed to restart.
DeathReason = Literal["died", "stalled", "unresponsive", "start_failed"]
# A model's state for users. `asleep`: no engine runs, and a request starts one.
ModelState = Literal["asleep", "starting", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model and the engine's capacity, known once the engine is ready."""

    max_model_len: int
    vocab_size: int
    engine: str
    engine_version: str
    has_chat_template: bool
    # Maximum sequences that run at once, over all copies of the model.
    max_running: int = 256
    # Maximum tokens computed in one step, prompts included, over all copies. None: no limit.
    step_tokens: int | None = None
    # Tokens that fit into the KV cache, over all copies. None: no limit.
    kv_tokens: int | None = None
    copies: int = 1
    takes_images: bool = False
    # The engine has a prefix cache.
    caches_prefixes: bool = False
    # Step costs, measured before the engine was ready.
    costs: StepCosts | None = None
    # Number of GPUs, over all copies of the model. 0 on a CPU.
    gpus: int = 0
    # What the model can do, and the numbers of a vector. 0: the model makes none.
    tasks: frozenset[Task] = frozenset({"generate"})
    dimensions: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for gauges, admission and the watchdog. Taking one never blocks."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    # Requests that the engine has received and not finished, as far as both sides know.
    unfinished: int = 0
    # Since the start: steps with work, and requests that the engine suspended for lack of memory.
    steps: int = 0
    preemptions: int = 0
    costs: StepCosts | None = None
    # Processes that the server has started for this engine. Their descendants belong to it, too.
    pids: tuple[int, ...] = ()
    # Why the engine can no longer serve. None while it can, as far as the engine itself knows.
    death: str | None = None
