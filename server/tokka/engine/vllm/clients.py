"""Connects Tokka to the engine processes of an AsyncLLM: chooses the client for the installed version of vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from tokka.engine.vllm.prompt_outputs import PromptOutputs
from tokka.engine.vllm.start.environment import engine_version
from tokka.engine.vllm.step_times import StepTimes

log = structlog.get_logger("tokka.engine")

# Versions of vLLM whose messages core_client.py speaks. The tests compare it with vLLM's own client.
KNOWN_VERSIONS = ("0.32.", "0.33.")


class ClientStats(Protocol):
    """The engine's statistics, as its client sees them."""

    times: StepTimes

    @property
    def latest(self) -> Mapping[int, Any]:
        """The latest `LatestStats`, by copy of the model."""
        ...

    def record(self) -> None:
        """Start recording vLLM's metrics."""
        ...


class VectorReceiver(Protocol):
    """Receives the vector of one input, as `VectorOutputs` does."""

    gathered: list[int]
    gathers_until_s: float

    def begin(self, cached_tokens: int, scores: Any) -> None: ...
    def pooled(self, vector: Any) -> bool: ...
    def take(self, token_ids: Sequence[int], reason: str | None, stop: Any, scores: Any) -> bool: ...
    def put(self, output: object) -> None: ...


class EngineClient(Protocol):
    """Adds requests to the engine and passes their outputs on. Its methods are documented in core_client.py."""

    @property
    def stats(self) -> ClientStats: ...
    @property
    def is_dead(self) -> bool: ...
    @property
    def unfinished(self) -> int: ...
    async def ping(self) -> None: ...
    async def complete(self, params: Any) -> None: ...
    def add(
        self,
        name: str,
        outputs: PromptOutputs,
        token_ids: list[int],
        params: Any,
        *,
        cache_salt: str | None = None,
        reasoning_ended: bool | None = None,
    ) -> list[str]: ...
    def embed(self, name: str, outputs: VectorReceiver, token_ids: list[int], params: Any) -> list[str]: ...
    def drop(self, ids: Sequence[str]) -> None: ...
    def fail(self, error: Exception) -> None: ...


def client_of(llm: Any, version: str | None = None) -> EngineClient:
    """Return the client of an AsyncLLM that has served no request yet. `version`: vLLM's; None: the installed one."""
    from vllm.envs import enable_envs_cache

    # vLLM reads the environment several times per request.
    enable_envs_cache()
    # vLLM would also compile each constraint in this process. `engine/grammars` compiles it in a sandbox.
    llm.input_processor.structured_outputs_config = None
    version = version or engine_version()
    # design 1.8.1
    if not version.startswith(KNOWN_VERSIONS):
        from tokka.engine.vllm.public_client import PublicClient

        reason = "this version of vLLM is not known; requests take more CPU, and admission does not learn step costs"
        log.warning("engine_client_chosen", client="public", engine_version=version, reason=reason)
        return PublicClient(llm)
    from tokka.engine.vllm.core_client import CoreClient

    # design 1.8
    return CoreClient(llm)
