"""The HTTP server that `tokka serve` runs: its end, and its `Date` header."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from tokka.cli import serve


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """Answer no request."""


async def until_set(http: serve._HttpServer) -> None:
    """Wait until the server has set the headers of all responses."""
    async with asyncio.timeout(20):
        while not http.server_state.default_headers:  # noqa: ASYNC110 (uvicorn sets no event)
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("renewed_every_s", [0.001, 3600.0])
async def test_http_server_renews_its_date_until_closed(
    renewed_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_DATE_EVERY_S", renewed_every_s)
    http = serve._HttpServer(uvicorn.Config(nothing, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        await until_set(http)
        if renewed_every_s < 1:
            http.server_state.default_headers = []
            await until_set(http)
        http.close()
        async with asyncio.timeout(20):
            await serving
