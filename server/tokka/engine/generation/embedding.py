"""The checks of embedding requests and their share of an engine, the same for every engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokka.core import GenerateRequest, Prompt, TextPrompt, TokensPrompt
from tokka.engine.generation.length import Truncation
from tokka.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter

# Maximum inputs of one request on the engine at once. Further ones follow as these end, so that a request of thousands
# leaves room for others.
MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class VectorLimits:
    """A model's vectors: their numbers, and the shorter lengths that it allows. None: any; empty: none."""

    max_model_len: int
    vocab_size: int
    dimensions: int
    shorter: Collection[int] | None = ()


def choices_at_once(request: GenerateRequest) -> int:
    """Return the choices, or inputs to embed, that a request runs at once."""
    choices = len(request.prompts) * request.sampling.n
    return choices if request.task == "generate" else min(choices, MOST_AT_ONCE)


def param_of(request: GenerateRequest, prompt: Prompt) -> str:
    """Return the name of a prompt's wire field."""
    own = prompt.param if isinstance(prompt, TextPrompt | TokensPrompt) else ""
    return own or request.prompt_param


def check_dimensions(request: GenerateRequest, limits: VectorLimits) -> int:
    """Return the numbers of each vector. Raises UnsupportedParameter, InvalidRequest."""
    asked, own = request.dimensions, limits.dimensions
    if asked is None or asked == own:
        return own
    if limits.shorter is not None and not limits.shorter:
        raise UnsupportedParameter(
            f"This model's vectors have {own} dimensions and cannot be shortened: leave dimensions out.",
            param="dimensions",
        )
    if asked > own:
        raise InvalidRequest(
            f"dimensions is {asked}; this model's vectors have {own}: send at most that.", param="dimensions"
        )
    if limits.shorter is not None and asked not in limits.shorter:
        allowed = ", ".join(map(str, sorted(limits.shorter)))
        raise InvalidRequest(f"dimensions is {asked}; this model allows {allowed}.", param="dimensions")
    return asked


def truncation_of(request: GenerateRequest, limits: VectorLimits) -> Truncation | None:
    """Return how a request cuts its inputs, at most to the context; None if it keeps them whole."""
    keep = request.truncate_prompt_tokens
    if keep is None:
        return None
    most = limits.max_model_len
    return Truncation(most if keep < 0 else min(keep, most), request.truncation_side == "right")


def check_ids(token_ids: Sequence[int], limits: VectorLimits, param: str) -> None:
    """Raise InvalidRequest for an id outside of the vocabulary.

    Clients that count tokens with another model's tokenizer send its ids.
    """
    for token in (max(token_ids, default=0), min(token_ids, default=0)):
        if not 0 <= token < limits.vocab_size:
            raise InvalidRequest(
                f"`{param}` holds the token id {token}; ids of this model are 0 to {limits.vocab_size - 1}. Send text, "
                "or token ids of this model. In LangChain, set check_embedding_ctx_length=False, which sends text.",
                param=param,
            )


def check_length(tokens: int, limits: VectorLimits, param: str) -> None:
    """Raise ContextLengthExceeded for an input that does not fit the context."""
    if tokens > limits.max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limits.max_model_len} tokens. Your {param} has {tokens} tokens. "
            "Please shorten it, or send truncate_prompt_tokens: -1.",
            param=param,
        )
