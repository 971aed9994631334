"""Bodies of both generation endpoints, and the models they parse to."""

from __future__ import annotations

import json
from typing import Any

from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hei"}]}


COMPLETION: dict[str, Any] = {"model": "m", "prompt": "Hei"}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate_json(json.dumps({**CHAT, **fields}))


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps({**COMPLETION, **fields}))
