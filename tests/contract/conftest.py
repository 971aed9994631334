"""The app with the scripted engine in this process, and a client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.supervised import until_ready
from tokka.app import Server, create_server
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.settings import Settings


@asynccontextmanager
async def served(options: FakeOptions, engine: type[FakeEngine], **settings: Any) -> AsyncIterator[Server]:
    """Yield a server whose engine starts."""
    server = create_server(Settings(engine="fake", **settings), lambda: engine(options))
    running: asyncio.Task[None] = asyncio.create_task(server.replicas.run())
    try:
        yield server
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.replicas.close()
        await server.bodies.close()


@asynccontextmanager
async def serving(
    options: FakeOptions | None = None, engine: type[FakeEngine] = FakeEngine, **settings: Any
) -> AsyncIterator[Server]:
    """Yield a server with a ready engine."""
    async with served(options or FakeOptions(), engine, **settings) as server:
        await until_ready(server.replicas)
        yield server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(max_body_size="1MiB") as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
        yield client
