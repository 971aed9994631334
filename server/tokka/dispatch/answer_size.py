"""Computes an upper bound of an answer's size in bytes before generation."""

from __future__ import annotations

from tokka.core import Accepted, GenerateRequest

# Bytes of JSON for a token's text. English tokens have 4; escaped or rare ones have more.
_TEXT_BYTES = 8
# Bytes of JSON for a number of a vector: 17 digits, a sign, an exponent and a comma.
_NUMBER_BYTES = 25
# Bytes of JSON for one reported alternative: its text, its bytes as numbers, its logprob.
_LOGPROB_BYTES = 100


def answer_bytes(request: GenerateRequest, accepted: Accepted) -> int:
    """Return the maximum bytes that a non-streamed answer takes while the server collects it."""
    sampling = request.sampling
    per_token = _TEXT_BYTES
    if sampling.logprobs is not None:
        per_token += _LOGPROB_BYTES * (1 + sampling.logprobs)
    tokens, prompt_tokens = sum(accepted.allowed_tokens) * sampling.n, sum(map(len, accepted.prompt_token_ids))
    if request.echo:
        # The prompt counts once, even if several choices echo it.
        tokens += prompt_tokens
    size = tokens * per_token
    if sampling.prompt_logprobs is not None:
        size += prompt_tokens * _LOGPROB_BYTES * (1 + sampling.prompt_logprobs)
    return size + len(accepted.prompt_token_ids) * accepted.dimensions * _NUMBER_BYTES
