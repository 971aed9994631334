"""Generations run without FastAPI's routing; their routers keep what that needs."""

from __future__ import annotations

import inspect
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tests.contract.conftest import serving
from tokka.api import GENERATE_ROUTERS
from tokka.api.path_facts import facts_of
from tokka.engine.fake import FakeOptions

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 1}
BODIES = {"/v1/chat/completions": CHAT, "/v1/completions": {"model": "fake", "prompt": "Hi", "max_tokens": 1}}
ROUTES = [route for router in GENERATE_ROUTERS for route in router.routes]


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_generate_route_can_be_called_without_fastapi(route: Any) -> None:
    assert isinstance(route, APIRoute)
    assert route.methods == {"POST"}
    assert route.param_convertors == {}
    assert list(inspect.signature(route.endpoint).parameters) == ["call"]
    assert facts_of(route.path).is_generation


async def test_generations_do_not_reach_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: Any) -> None:
        raise AssertionError("FastAPI was called")

    async with serving(FakeOptions()) as server:
        monkeypatch.setattr(FastAPI, "__call__", unreachable)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka") as client:
            statuses = [(await client.post(path, json=BODIES[path])).status_code for path in BODIES]
            assert statuses == [200, 200]
            assert (await client.get("/v1/models")).status_code == 500


async def test_fault_of_a_route_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def faulty(*_: Any) -> None:
        raise KeyError("/secret/path")

    async with serving(FakeOptions()) as server:
        monkeypatch.setattr(APIRoute, "handle", faulty)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka") as client:
            answer = await client.get("/v1/models")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].startswith("The server had an error while processing your request (req")
