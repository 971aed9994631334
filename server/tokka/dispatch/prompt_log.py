"""The prompts of a request as the log shows them, with --log-prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from tokka.core import ChatPrompt, Prompt, RequestRecord


def shown_prompts(prompts: Iterable[Prompt]) -> list[dict[str, Any]]:
    """Return prompts as plain data. Images are shown by their places: their data is megabytes."""
    return [_shown(prompt) for prompt in prompts]


def prompt_fields(record: RequestRecord) -> dict[str, Any]:
    """Return the fields of a request's log line that show its prompts: none without --log-prompts."""
    return {} if record.prompt is None else {"prompt": record.prompt}


def _shown(prompt: Prompt) -> dict[str, Any]:
    if not isinstance(prompt, ChatPrompt) or not prompt.images:
        return asdict(prompt)
    return {**asdict(replace(prompt, images=())), "images": [image.param for image in prompt.images]}
