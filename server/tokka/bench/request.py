"""The bytes of the requests. They are written before they are due, since writing them then would delay them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from tokka.bench.address import address_of
from tokka.bench.plan import Plan, Tenant
from tokka.bench.prompts import Content, synthetic


def requests_of(plan: Plan, tenant: Tenant, chance: random.Random, sizes: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield a tenant's requests, one for each size: tokens of the prompt, and maximum tokens of the completion."""
    address = address_of(plan.url)
    path = "/v1/chat/completions" if plan.api == "chat" else "/v1/completions"
    head = f"POST {address.prefix}{path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    if tenant.key:
        head += f"Authorization: Bearer {tenant.key}\r\n"
    if plan.new_connections:
        head += "Connection: close\r\n"
    fields: dict[str, Any] = {"model": plan.model}
    if plan.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if plan.ignore_eos:
        fields["ignore_eos"] = True
    given = _given(plan, chance) if plan.prompts else None
    same = synthetic(plan.prompt_tokens.highest, random.Random(plan.seed)) if plan.same_prompt else None
    for prompt_tokens, max_tokens in sizes:
        # Each request gets a different prompt, so that no prefix is cached, unless the plan asks for the same one.
        content = next(given) if given else same or synthetic(prompt_tokens, chance)
        # `max_tokens` is the older name, but both APIs and every server know it.
        body = orjson.dumps({**fields, "max_tokens": max_tokens, **_for_api(content, plan.api)})
        yield f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _given(plan: Plan, chance: random.Random) -> Iterator[Content]:
    # Users that begin with the same prompt would share its cached prefix.
    first = chance.randrange(len(plan.prompts))
    while True:
        yield from plan.prompts[first:]
        first = 0


def _for_api(content: Content, api: str) -> Content:
    if api == "chat" and "prompt" in content:
        return {"messages": [{"role": "user", "content": content["prompt"]}]}
    return content
