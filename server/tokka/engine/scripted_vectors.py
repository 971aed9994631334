"""The scripted engine's vectors: they follow from the text alone, and similar texts have similar ones."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import get_args

from tokka.core import GenerateRequest, Prompt, TokensPrompt
from tokka.engine.generation.embedding import VectorLimits, check_ids, check_length, param_of, truncation_of
from tokka.errors import ConfigurationError
from tokka.tasks import Task

# Tokens of a text that its vector depends on.
_MOST_TOKENS = 4096


def vector_of(token_ids: Sequence[int], dimensions: int) -> bytes:
    """Return a vector of length 1, as 32-bit floats in little-endian order.

    It counts the pairs of neighbouring tokens, so texts that share words are near each other.
    """
    counts = [0.0] * dimensions
    ids = token_ids[:_MOST_TOKENS]
    for first, second in zip((0, *ids), ids, strict=False):
        hashed = (first * 31 + second) * 2654435761 % 2**32
        counts[hashed % dimensions] += 1.0 if hashed >> 31 else -1.0
    length = math.sqrt(sum(count * count for count in counts))
    numbers = array("f", [count / length for count in counts] if length else [1.0, *counts[1:]])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


async def embedded_ids(
    request: GenerateRequest, tokenize: Callable[[Prompt, str], Awaitable[Sequence[int]]], limits: VectorLimits
) -> list[Sequence[int]]:
    """Return the token ids of each input. Raises InvalidRequest."""
    found = []
    for prompt in request.prompts:
        param = param_of(request, prompt)
        if isinstance(prompt, TokensPrompt):
            check_ids(prompt.token_ids, limits, param)
        ids = await tokenize(prompt, request.tenant)
        if kept := truncation_of(request, limits):
            ids = kept.of(ids)
        check_length(len(ids), limits, param)
        found.append(ids)
    return found


def tasks_of(names: str) -> frozenset[Task]:
    """Return the tasks of an option. Raises ConfigurationError for an unknown one."""
    known: tuple[Task, ...] = get_args(Task)
    if unknown := next((name for name in names.split(",") if name not in known), None):
        raise ConfigurationError(f"--engine-arg tasks: {unknown!r} is unknown; give {' or '.join(known)}")
    return frozenset(task for task in known if task in names.split(","))
