"""Records of requests."""

from __future__ import annotations

from typing import Any

from tokka.core import Key, RequestRecord

KEY = Key("k", "t", frozenset({"inference"}))


def record(**fields: Any) -> RequestRecord:
    values: dict[str, Any] = {"key": KEY, "model": "m", "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5}
    return RequestRecord(id="r", arrived_s=0.0, **values | fields)
