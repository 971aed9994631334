"""Replaces the work that vLLM does per token outside the engine process."""

from __future__ import annotations

from typing import Any


def install_fast_path(llm: Any) -> Any:
    """Return the AsyncLLM with its slow parts replaced by Tokka's."""
    from vllm.envs import enable_envs_cache

    from tokka.engine.vllm.stats import StepStats
    from tokka.engine.vllm.step_handler import StepHandler
    from tokka.engine.vllm.step_processor import StepProcessor
    from tokka.engine.vllm.step_socket import StepSocket

    # vLLM reads the environment several times per token, and per request the tokenizer, through three layers.
    # design 1.8
    enable_envs_cache()
    eos = llm.renderer.get_eos_token_id()
    llm.renderer.get_eos_token_id = lambda: eos
    llm.output_processor = StepProcessor.instead_of(llm.output_processor, StepStats(llm.logger_manager))
    StepSocket(llm.engine_core.resources.output_socket)
    llm.engine_core.outputs_queue = StepHandler(llm.engine_core, llm.output_processor)
    # vLLM would also compile each constraint in this process. `engine/grammars` compiles it in a sandbox.
    llm.input_processor.structured_outputs_config = None
    return llm
