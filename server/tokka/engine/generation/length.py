"""Computes how many tokens a request may generate, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokka.core import GenerateRequest
from tokka.errors import ContextLengthExceeded, InvalidRequest


def allowed_tokens(
    request: GenerateRequest,
    prompt_tokens: int,
    max_model_len: int,
    cap: int | None,
    default: int | None = None,
) -> int:
    """Return the number of tokens that one choice may generate for a prompt of `prompt_tokens`.

    `cap` is the server's limit per choice; the key's limit comes with the request. `default` is the model's limit for
    a request without a limit. Raises ContextLengthExceeded if prompt and requested tokens together exceed the context,
    InvalidRequest if the requested tokens exceed the caps or `min_tokens` exceeds the result.
    """
    caps = [limit for limit in (cap, request.max_tokens_cap) if limit is not None]
    cap = min(caps, default=None)
    requested = request.sampling.max_tokens
    if requested is None:
        if prompt_tokens >= max_model_len:
            raise _leaves_no_room(request.prompt_param, prompt_tokens, max_model_len)
        room = max_model_len - prompt_tokens
        wanted = request.sampling.default_max_tokens or default
        allowed = min(limit for limit in (room, wanted, cap) if limit is not None)
    else:
        if cap is not None and requested > cap:
            raise InvalidRequest(
                f"{request.limit_param} is too large: {requested}. This server allows at most {cap} completion tokens"
                " per choice.",
                param=request.limit_param,
            )
        # An engine generates at least one token, so even a prompt that is only scored needs room for one.
        needed = max(1, requested)
        if prompt_tokens + needed > max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {max_model_len} tokens. However, you requested "
                f"{prompt_tokens + needed} tokens ({prompt_tokens} in the prompt, {needed} in the completion). "
                f"Please reduce the length of the {request.prompt_param} or {request.limit_param}.",
                param=request.prompt_param,
            )
        allowed = requested
    if request.sampling.min_tokens > allowed:
        raise InvalidRequest(
            f"min_tokens ({request.sampling.min_tokens}) exceeds the {allowed} tokens this request may generate.",
            param="min_tokens",
        )
    return allowed


def _leaves_no_room(param: str, prompt_tokens: int, max_model_len: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens. However, your {param} resulted in "
        f"{prompt_tokens} tokens, which leaves 0 for the completion. Please shorten it.",
        param=param,
        prompt_tokens=prompt_tokens,
        # An engine generates at least one token.
        maximum=max_model_len - 1,
    )


@dataclass(frozen=True, slots=True)
class Truncation:
    """Keeps `keep` tokens of a prompt: the last ones, or the first ones if `cuts_end` is set.

    `before`, `after`: tokens that the tokenizer has put around a text. They stay if there is room for more.
    """

    keep: int
    cuts_end: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def of(self, token_ids: Sequence[int]) -> Sequence[int]:
        if self.keep >= len(token_ids):
            return token_ids
        around = len(self.before) + len(self.after)
        if 0 < around < self.keep:
            inner = token_ids[len(self.before) : len(token_ids) - len(self.after)]
            room = self.keep - around
            return [*self.before, *(inner[:room] if self.cuts_end else inner[-room:]), *self.after]
        return token_ids[: self.keep] if self.cuts_end else token_ids[-self.keep :]


def truncation(request: GenerateRequest, max_model_len: int) -> Truncation | None:
    """Return how a request truncates its prompts, or None if it keeps them whole."""
    keep, sampling = request.truncate_prompt_tokens, request.sampling
    if keep is None:
        return None
    if keep < 0:
        asked = sampling.default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
        # Keep at least one prompt token, and leave room for at least one completion token.
        keep = max(1, max_model_len - max(1, asked or 0, sampling.min_tokens))
    return Truncation(keep, request.truncation_side == "right")
