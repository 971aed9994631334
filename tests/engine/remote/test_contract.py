"""The contract of every engine, on an engine behind the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.contract import EngineContract
from tests.fleet.gateways import gateway, worker
from tokka.engine.base import Engine


class TestPlain(EngineContract):
    """The scripted engine over a plain connection."""

    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        async with gateway(tmp_path) as joined, worker(joined):
            yield (await joined.ready()).engine


class TestTls(EngineContract):
    """The scripted engine over TLS."""

    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        async with gateway(tmp_path, tls=True) as joined, worker(joined):
            yield (await joined.ready()).engine
