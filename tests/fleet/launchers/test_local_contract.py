"""The contract of launchers, for the local one, with real workers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fleet.gateways import gateway
from tests.fleet.launchers.contract import LauncherContract, Site
from tests.program import TOKKA
from tokka.fleet.launchers.local import LocalLauncher
from tokka.fleet.launchers.machine import Machine
from tokka.fleet.spec import ModelSpec


class TestLocal(LauncherContract):
    """Processes of this machine."""

    @pytest.fixture
    async def site(self, tmp_path: Path) -> AsyncIterator[Site]:
        async with gateway(tmp_path) as opened:

            def command(spec: ModelSpec, worker: str) -> tuple[list[str], dict[str, str]]:
                argv = [str(TOKKA), "worker", "--join", str(opened.address), "--worker-id", worker]
                argv += ["--join-token-file", str(opened.token_file), "--served-model-name", spec.name]
                for name, value in spec.settings.items():
                    argv += [f"--{name.replace('_', '-')}", value]
                return argv, dict(os.environ)

            machine = Machine(("0", "1"), 1 << 40)
            site = Site(opened, lambda: LocalLauncher(tmp_path / "workers", command, machine))
            yield site
            await site.close()
