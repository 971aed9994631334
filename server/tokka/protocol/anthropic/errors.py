"""Errors in Anthropic's form."""

from __future__ import annotations

from typing import Any

from tokka.errors import ContextLengthExceeded, TokkaError

# Statuses that are not here are `invalid_request_error` below 500 and `api_error` from there on.
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(error: TokkaError, request_id: str | None = None) -> dict[str, Any]:
    """Return the JSON body of an error. `request_id`: None in a stream, whose headers have it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    detail: dict[str, Any] = {"type": kind, "message": _message(error)}
    if error.details is not None:
        detail["details"] = dict(error.details)
    return {"type": "error", "error": detail, "request_id": request_id}


def _message(error: TokkaError) -> str:
    if isinstance(error, ContextLengthExceeded) and error.prompt_tokens is not None:
        # Claude Code looks for these words: it then shortens the conversation and goes on.
        return f"prompt is too long: {error.prompt_tokens} tokens > {error.maximum} maximum"
    return error.message
