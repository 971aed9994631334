"""Images in messages: refused by a model that takes none, checked for a model that takes some."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.contract.bodies import CHAT
from tests.contract.conftest import serving
from tokka.engine.fake import FakeOptions

PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
async def viewer() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(FakeOptions(images=True)) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            yield client


def body(image_url: Any, role: str = "user") -> dict[str, Any]:
    parts = [{"type": "text", "text": "Hei"}, {"type": "image_url", "image_url": image_url}]
    return {"model": "fake", "messages": [{"role": role, "content": parts}]}


@pytest.mark.parametrize("image_url", [PNG, {"url": PNG}, {"url": PNG, "detail": "low"}])
async def test_image_is_taken_by_a_model_of_images(viewer: httpx.AsyncClient, image_url: Any) -> None:
    answer = await viewer.post(CHAT, json=body(image_url))
    assert answer.status_code == 200, answer.text
    counted = await viewer.post("/tokenize", json=body(image_url))
    assert counted.json()["count"] == answer.json()["usage"]["prompt_tokens"] > len("user: Hei\n")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/a.png", "fetches no images"),
        ("file:///etc/passwd", "fetches no images"),
        ("data:image/svg+xml;base64,AAAA", "image/png"),
        ("data:image/png;base64,A", "base64"),
        ("data:image/png;base64,ä", "base64"),
        ("data:image/png;base64,", "empty"),
    ],
)
async def test_image_that_cannot_be_read_is_refused(viewer: httpx.AsyncClient, url: str, reason: str) -> None:
    answer = await viewer.post(CHAT, json=body({"url": url}))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "messages[0].content[1]", "invalid_value")
    assert reason in error["message"]


async def test_image_is_refused_outside_of_user_messages(viewer: httpx.AsyncClient) -> None:
    answer = await viewer.post(CHAT, json=body({"url": PNG}, "system"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content[1].type")


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_image_is_refused_by_a_model_of_text(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=body({"url": PNG}))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content[1].type")
    assert error["code"] == "unsupported_parameter"
