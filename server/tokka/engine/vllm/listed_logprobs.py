"""Inside the engine's process: logprobs of listed tokens, beside requests that ask for the likeliest ones.

As soon as one request of a step lists tokens, vLLM's sampler gives every request of the step the columns of such lists:
the likeliest tokens of the others become token 0 with a logprob of minus infinity.
"""

from __future__ import annotations

from typing import Any


def keep_logprobs_apart() -> None:
    """Have vLLM's sampler give each request of a step what it asked for."""
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
    """Return vLLM's tensors of the likeliest tokens, with those of listed ones in these rows."""
    width = max(listed.logprobs.shape[1], likeliest.logprobs.shape[1])
    ids = _widened(likeliest.logprob_token_ids, width, 0)
    logprobs = _widened(likeliest.logprobs, width, float("-inf"))
    ids[rows] = _widened(listed.logprob_token_ids, width, 0)[rows]
    logprobs[rows] = _widened(listed.logprobs, width, float("-inf"))[rows]
    return likeliest._replace(logprob_token_ids=ids, logprobs=logprobs)


def _widened(tensor: Any, width: int, value: float) -> Any:
    from torch.nn.functional import pad

    return pad(tensor, (0, width - tensor.shape[1]), value=value)
