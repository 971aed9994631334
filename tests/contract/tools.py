"""A server whose engine answers with given tool calls."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.contract.bodies import CHAT, GOOD
from tests.contract.conftest import serving
from tests.engine.reading.tool_texts import TOOLS
from tests.wire import events
from tokka.core import GenerateRequest
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.protocol.response_models import ChatCompletion, ChatCompletionChunk

BODY = {**GOOD[CHAT], "max_tokens": 2000, "tools": list(TOOLS.functions)}


class Obedient(FakeEngine):
    """An engine that sends its text despite a constraint. The tests' texts satisfy the constraint."""

    def _text_of(self, request: GenerateRequest) -> bytes:
        return self._options.answer.encode()


async def answers(options: FakeOptions, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the plain response and the stream's chunks for one request. Both must have the documented form."""
    async with serving(options, Obedient) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            body = {**BODY, **fields}
            plain = await client.post(CHAT, json=body)
            streamed = await client.post(CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert plain.status_code == 200, plain.text
    ChatCompletion.model_validate_json(plain.content)
    chunks = events(streamed)
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(json.dumps(chunk))
    return plain.json(), chunks
