"""The fields of the `error` event."""

from __future__ import annotations

from typing import Any

from tokka.errors import TokkaError


def error_fields(error: TokkaError) -> dict[str, Any]:
    """Return the fields twice: nested as Open Responses has them, and flat as OpenAI's clients do."""
    nested: dict[str, Any] = error.body()["error"]
    return {**{name: nested[name] for name in ("code", "message", "param")}, "error": nested}
