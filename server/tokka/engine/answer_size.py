"""How many bytes an answer can take, before it is generated: pure arithmetic."""

from __future__ import annotations

from tokka.core import Accepted, GenerateRequest

# JSON of a token's text; English tokens have 4 bytes, escaped or rare ones more.
_TEXT_BYTES = 8
# JSON of one alternative beside a token: its text, its bytes as numbers, its logprob.
_LOGPROB_BYTES = 100


def answer_bytes(request: GenerateRequest, accepted: Accepted) -> int:
    """Return the bytes that the longest plain answer takes while it is collected."""
    sampling = request.sampling
    per_token = _TEXT_BYTES
    if sampling.logprobs is not None:
        per_token += _LOGPROB_BYTES * (1 + sampling.logprobs)
    tokens, prompt_tokens = sum(accepted.allowed_tokens) * sampling.n, sum(map(len, accepted.prompt_token_ids))
    if request.echo:
        # Once, however many choices show it.
        tokens += prompt_tokens
    size = tokens * per_token
    if sampling.prompt_logprobs is not None:
        size += prompt_tokens * _LOGPROB_BYTES * (1 + sampling.prompt_logprobs)
    return size
