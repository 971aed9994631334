"""Builds the requests for vLLM's engine processes, with the same fields as vLLM's own front end.

vLLM validates and copies the parameters of every prompt, and checks every token id again. Here parameters are completed
once and shared by the prompts of a request. `render.py` and `generation/length.py` have already checked the prompt.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from copy import copy
from typing import Any

from vllm import PoolingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.parallel_sampling import ParentRequest


class RequestBuilder:
    """Builds EngineCoreRequests. `llm`: vLLM's AsyncLLM, whose input processor validates the parameters."""

    def __init__(self, llm: Any) -> None:
        self._processor = llm.input_processor
        self._eos = llm.renderer.get_eos_token_id()
        self._config = llm.vllm_config
        self._numbers = itertools.count()

    def complete(self, params: Any, tasks: Sequence[str]) -> None:
        """Validate new parameters and add the model's end tokens, in place. Raises VLLMValidationError.

        `tasks`: what the engine can do with the model.
        """
        processor = self._processor
        if isinstance(params, PoolingParams):
            processor._validate_params(params, tasks)
            return
        if self._config.cache_config.kv_sharing_fast_prefill and params.prompt_logprobs:
            raise VLLMValidationError(
                "prompt_logprobs is not available with --kv-sharing-fast-prefill. Leave it out.",
                parameter="prompt_logprobs",
            )
        watermarking = processor._validate_params(params, tasks)
        processor.apply_watermarking(params, watermarking)
        params.update_from_generation_config(processor.generation_config_fields, self._eos)

    def build(
        self,
        name: str,
        token_ids: list[int],
        params: Any,
        *,
        cache_salt: str | None = None,
        reasoning_ended: bool | None = None,
    ) -> tuple[list[EngineCoreRequest], ParentRequest | None]:
        """Return one request per sequence of a prompt, and vLLM's parent of the sequences if there are several.

        `params`: completed parameters. `name`: need not be unique.
        """
        request = EngineCoreRequest(
            request_id=f"{name}-{next(self._numbers):08x}",
            prompt_token_ids=token_ids,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=cache_salt,
            data_parallel_rank=None,
            external_req_id=name,
            reasoning_ended=reasoning_ended,
        )
        if params.n == 1:
            return [request], None
        parent = ParentRequest(request)
        children = []
        for index in range(params.n):
            child = copy(request)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            children.append(child)
        return children, parent

    def build_pooling(self, name: str, token_ids: list[int], params: Any) -> EngineCoreRequest:
        """Return the request of one input. `params`: completed PoolingParams. `name`: need not be unique."""
        return EngineCoreRequest(
            request_id=f"{name}-{next(self._numbers):08x}",
            prompt_token_ids=token_ids,
            mm_features=None,
            sampling_params=None,
            pooling_params=params,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=name,
        )
