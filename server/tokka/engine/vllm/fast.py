"""Takes over what vLLM does for each token outside the engine's process."""

from __future__ import annotations

from typing import Any


def made_fast(llm: Any) -> Any:
    """Return the AsyncLLM with its slow parts replaced by ours."""
    from vllm.envs import enable_envs_cache

    from tokka.engine.vllm.stats import StepStats
    from tokka.engine.vllm.step_queue import StepQueue
    from tokka.engine.vllm.step_socket import StepSocket
    from tokka.engine.vllm.steps import StepOutputs

    # It asks the environment some times for each, and for each request the tokenizer, through three layers.
    enable_envs_cache()
    eos = llm.renderer.get_eos_token_id()
    llm.renderer.get_eos_token_id = lambda: eos
    llm.output_processor = StepOutputs.instead_of(llm.output_processor, StepStats(llm.logger_manager))
    StepSocket(llm.engine_core.resources.output_socket)
    llm.engine_core.outputs_queue = StepQueue(llm.engine_core, llm.output_processor)
    # It would compile each constraint on this side, too; grammars.py has done so where it harms nobody.
    llm.input_processor.structured_outputs_config = None
    return llm
