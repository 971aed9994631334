"""Converts Tokka's sampling to vLLM's. Checks the types, since vLLM does not and a wrong type kills its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokka.core import Sampling
from tokka.errors import EngineError

# The only library that enforces constraints: docs/adr/0014-structured-outputs.md.
BACKEND = "guidance"
_INT64_MAX = 2**63 - 1
# Room below the largest seed: vLLM adds the number of a choice to the seed. It also reads -1 as "no seed". Seeds
# outside the range map to others within it.
_SEED_ROOM = 2**20
_DEFAULTS: Mapping[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def sampling_params(
    sampling: Sampling,
    max_tokens: int,
    *,
    echo: bool,
    defaults: Mapping[str, Any],
    grammar: str | None = None,
    bad_words: list[list[int]] | None = None,
) -> Any:
    """Return vLLM's SamplingParams for one prompt. Raises EngineError for a value of the wrong type.

    `defaults`: the model's own values, for fields that the request does not set. `grammar`: the constraint of
    `sampling`, compiled by service.py. `bad_words`: the bad words of `sampling` in tokens.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    fields = _fields(sampling, max_tokens, echo=echo, defaults=defaults)
    _check_types(fields)
    # Tokka decodes the text and finds the stop strings: see step_processor.py.
    params = SamplingParams(
        **fields,
        structured_outputs=None if grammar is None else _structured(grammar),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )
    # vLLM would tokenise words again for each prompt, on the event loop.
    params._bad_words_token_ids = bad_words
    return params


def _structured(grammar: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    params = StructuredOutputsParams(grammar=grammar)
    # vLLM's own check would set this, but would also compile the grammar again.
    params._backend = BACKEND
    return params


def is_greedy(sampling: Sampling, defaults: Mapping[str, Any]) -> bool:
    """Return whether sampling is greedy. Then all choices are equal. vLLM refuses n > 1, so one is made and copied."""
    return _chosen(sampling.temperature, "temperature", defaults) == 0 or sampling.top_p == 0


def _chosen(value: float | None, name: str, defaults: Mapping[str, Any]) -> float:
    return value if value is not None else defaults.get(name, _DEFAULTS[name])


def _fields(sampling: Sampling, max_tokens: int, *, echo: bool, defaults: Mapping[str, Any]) -> dict[str, Any]:
    greedy = is_greedy(sampling, defaults)
    return {
        "n": 1 if greedy else sampling.n,
        "max_tokens": max_tokens,
        "min_tokens": min(sampling.min_tokens, max_tokens),
        "temperature": 0.0 if greedy else float(_chosen(sampling.temperature, "temperature", defaults)),
        # OpenAI accepts 0 for the single most likely token; vLLM needs a positive number.
        "top_p": 1.0 if greedy else float(_chosen(sampling.top_p, "top_p", defaults)),
        "top_k": int(_chosen(sampling.top_k, "top_k", defaults)),
        "min_p": float(_chosen(sampling.min_p, "min_p", defaults)),
        "presence_penalty": float(sampling.presence_penalty),
        "frequency_penalty": float(sampling.frequency_penalty),
        "repetition_penalty": float(_chosen(sampling.repetition_penalty, "repetition_penalty", defaults)),
        "seed": _seed(sampling.seed),
        "logit_bias": dict(sampling.logit_bias) if sampling.logit_bias else None,
        "logprobs": sampling.logprobs,
        "logprob_token_ids": list(sampling.logprob_token_ids) or None,
        "prompt_logprobs": _prompt_logprobs(sampling, echo=echo),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "allowed_token_ids": list(sampling.allowed_token_ids) if sampling.allowed_token_ids is not None else None,
        "skip_special_tokens": sampling.skip_special_tokens,
        "spaces_between_special_tokens": sampling.spaces_between_special_tokens,
        "thinking_token_budget": _budget(sampling.thinking_token_budget, max_tokens),
    }


def _prompt_logprobs(sampling: Sampling, *, echo: bool) -> int | None:
    asked = (sampling.prompt_logprobs, sampling.logprobs if echo else None)
    return max((number for number in asked if number is not None), default=None)


def _budget(tokens: int | None, max_tokens: int) -> int | None:
    # A budget that cannot run out costs the engine work and may be too large for its tensors.
    return None if tokens is None or tokens >= max_tokens else tokens


def _seed(seed: int | None) -> int | None:
    if seed is None or 0 <= seed <= _INT64_MAX - _SEED_ROOM:
        return seed
    return seed % (_INT64_MAX - _SEED_ROOM)


def _check_types(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        kind = _TYPES[name]
        if (value is None and name in _OPTIONAL) or (type(value) is kind and kind is not int):
            continue
        values = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else [value]
        allowed = (int, float) if isinstance(value, dict) else (kind,)
        for item in values:
            # design 2.5
            if type(item) not in allowed or (type(item) is int and not -_INT64_MAX - 1 <= item <= _INT64_MAX):
                raise EngineError(f"The server built an invalid value for {name}; the request was not run.", param=name)


_OPTIONAL = {
    "seed",
    "logit_bias",
    "logprobs",
    "logprob_token_ids",
    "prompt_logprobs",
    "allowed_token_ids",
    "thinking_token_budget",
}
_TYPES: Mapping[str, type] = {
    "n": int,
    "max_tokens": int,
    "min_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
    "logit_bias": float,
    "logprobs": int,
    "logprob_token_ids": int,
    "prompt_logprobs": int,
    "stop_token_ids": int,
    "ignore_eos": bool,
    "allowed_token_ids": int,
    "skip_special_tokens": bool,
    "spaces_between_special_tokens": bool,
    "thinking_token_budget": int,
}
