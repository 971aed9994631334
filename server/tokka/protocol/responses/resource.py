"""The response object, and the part of a request that it repeats."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokka.core import Usage
from tokka.protocol.responses.items import PlainItem

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """The form of the response that a request asks for: all that an encoder needs of the body."""

    model: str
    stream: bool
    # The fields of the request that the response repeats.
    repeated: Mapping[str, Any]
    instructions: str | None
    # The items of the request. Items of stored responses before them are not among them.
    items: tuple[PlainItem, ...]
    # Namespaces and local names of flattened functions, by the name that the model knows.
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # Whether output text carries the logprobs of its tokens.
    has_logprobs: bool = False
    obfuscates: bool = False
    previous_response_id: str | None = None
    # Whether the client asks to store the response. None: the server's default.
    store: bool | None = None
    background: bool = False
    # Whether the response will be stored.
    is_stored: bool = False


@dataclass(slots=True)
class Progress:
    """The state of a response while it is generated."""

    id: str
    created_at: int
    status: Status = "in_progress"
    # The complete items.
    output: list[PlainItem] = field(default_factory=list)
    completed_at: int | None = None
    usage: Usage | None = None
    incomplete_reason: str | None = None
    error: Mapping[str, Any] | None = None
    is_stored: bool = False


def new_response_id() -> str:
    """Return an id that nobody can guess: it gives access to the stored response."""
    return f"resp_{secrets.token_hex(16)}"


def response_object(form: ResponseForm, progress: Progress) -> dict[str, Any]:
    """Return the response object. All its fields are always present, as its specification demands."""
    reason = progress.incomplete_reason
    return {
        "id": progress.id,
        "object": "response",
        "created_at": progress.created_at,
        "status": progress.status,
        "completed_at": progress.completed_at,
        "background": form.background,
        "error": progress.error,
        "incomplete_details": None if reason is None else {"reason": reason},
        "instructions": form.instructions,
        "model": form.model,
        "output": list(progress.output),
        "previous_response_id": form.previous_response_id,
        "store": progress.is_stored,
        "usage": None if progress.usage is None else usage_object(progress.usage),
        **form.repeated,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return the usage as the Responses API names it."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
