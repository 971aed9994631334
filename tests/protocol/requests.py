"""Completion requests for the encoders."""

from __future__ import annotations

from typing import Any

import orjson

from tokka.protocol.completions import CompletionRequest


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(orjson.dumps({"model": "m", "prompt": "Hei", **fields}))
