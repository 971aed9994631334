"""Keeps the parameters of common requests. vLLM takes 45 us to build and check them, a copy takes 3."""

from __future__ import annotations

from collections import OrderedDict
from copy import copy
from typing import Any

from tokka.core import Sampling

# Maximum different parameters kept. The least recently used ones go first.
_MOST = 256

_Shape = tuple[object, ...]


class ParamsCache:
    """The completed SamplingParams of one engine, by the values that a request sets.

    Requests with a seed, a constraint, words, biases or token ids are not common enough to be kept.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[_Shape, Any] = OrderedDict()

    def get(self, sampling: Sampling, max_tokens: int, *, echo: bool) -> Any | None:
        """Return parameters as `sampling_params` builds and the client completes them, or None.

        They share no list or set with those of another request.
        """
        shape = _shape(sampling, echo=echo)
        if shape is None or (kept := self._kept.get(shape)) is None:
            return None
        self._kept.move_to_end(shape)
        params = _own(kept)
        params.max_tokens = max_tokens
        return params

    def put(self, params: Any, sampling: Sampling, *, echo: bool) -> None:
        """Keep a copy of completed parameters, if they are common."""
        if (shape := _shape(sampling, echo=echo)) is not None:
            self._kept[shape] = _own(params)
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)


def _own(params: Any) -> Any:
    own = copy(params)
    # All lists and sets of common parameters.
    own.stop, own.bad_words = list(params.stop), list(params.bad_words)
    own.stop_token_ids = list(params.stop_token_ids)
    own._all_stop_token_ids = set(params._all_stop_token_ids)
    return own


def _shape(sampling: Sampling, *, echo: bool) -> _Shape | None:
    """Return all values that the parameters depend on beside `max_tokens`, or None for parameters that are not kept."""
    if (
        sampling.seed is not None
        or sampling.constraint is not None
        # Both depend on `max_tokens`.
        or sampling.min_tokens
        or sampling.thinking_token_budget is not None
        or sampling.bad_words
        or sampling.logit_bias
        or sampling.stop_token_ids
        or sampling.logprob_token_ids
        or sampling.allowed_token_ids is not None
    ):
        return None
    return (
        sampling.n,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        sampling.logprobs,
        sampling.prompt_logprobs,
        sampling.ignore_eos,
        sampling.skip_special_tokens,
        sampling.spaces_between_special_tokens,
        echo,
    )
