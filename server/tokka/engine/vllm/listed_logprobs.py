"""Runs in the engine process: logprobs of listed tokens, beside requests that ask for the likeliest tokens.

If one request of a step lists tokens, vLLM's sampler returns the columns of its list for every request of the step. The
likeliest tokens of the other requests become token 0 with a logprob of minus infinity.
"""

from __future__ import annotations

from typing import Any


def keep_logprobs_apart() -> None:
    """Make vLLM's sampler return to each request of a step the logprobs that it asked for."""
    from vllm.v1.sample.sampler import Sampler

    plain_forward, gather_listed = Sampler.forward, Sampler.gather_specific_token_logprobs

    def forward(self: Any, logits: Any, sampling_metadata: Any, *arguments: Any, **options: Any) -> Any:
        self.most_alternatives = sampling_metadata.max_num_logprobs
        return plain_forward(self, logits, sampling_metadata, *arguments, **options)

    def gather(self: Any, logprobs: Any, logprob_token_ids: dict[int, list[int]], sampled: Any) -> Any:
        listed = gather_listed(self, logprobs, logprob_token_ids, sampled)
        most = self.most_alternatives
        if listed is None or most is None or most < 0 or len(logprob_token_ids) == len(sampled):
            return listed
        likeliest = self.gather_logprobs(logprobs, most, token_ids=sampled)
        return _merged(listed, likeliest, sorted(logprob_token_ids))

    Sampler.forward, Sampler.gather_specific_token_logprobs = forward, gather


def _merged(listed: Any, likeliest: Any, rows: list[int]) -> Any:
    """Return vLLM's tensors of the likeliest tokens, with the listed tokens in `rows`."""
    width = max(listed.logprobs.shape[1], likeliest.logprobs.shape[1])
    ids = _widened(likeliest.logprob_token_ids, width, 0)
    logprobs = _widened(likeliest.logprobs, width, float("-inf"))
    ids[rows] = _widened(listed.logprob_token_ids, width, 0)[rows]
    logprobs[rows] = _widened(listed.logprobs, width, float("-inf"))[rows]
    return likeliest._replace(logprob_token_ids=ids, logprobs=logprobs)


def _widened(tensor: Any, width: int, value: float) -> Any:
    from torch.nn.functional import pad

    return pad(tensor, (0, width - tensor.shape[1]), value=value)
