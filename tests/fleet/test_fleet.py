"""The fleet of a gateway in this process: the file, the token, the address, workers of the local launcher, updates."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tokka.app import Server, create_gateway
from tokka.errors import ConfigurationError, InvalidRequest, ModelNotFound, StateUnavailable
from tokka.fleet.file import read_fleet_file
from tokka.settings import Settings

FAKE: dict[str, Any] = {"settings": {"engine": "fake"}, "idle_after": 60}


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def write(folder: Path, models: dict[str, Any], **keys: Any) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"join": f"127.0.0.1:{port()}", **keys, "models": models}))
    return path


@asynccontextmanager
async def serving(folder: Path, models: dict[str, Any], **keys: Any) -> AsyncIterator[Server]:
    """Run a gateway without its sockets for HTTP."""
    settings = Settings(fleet=write(folder, models, **keys), state_dir=folder / "state", drain_timeout=5)
    assert settings.fleet is not None
    server = create_gateway(settings, read_fleet_file(settings.fleet))
    assert server.fleet is not None
    server.fleet.open()
    running = asyncio.create_task(server.fleet.run())
    try:
        yield server
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.catalogue.close()
        await server.fleet.stop()
        await server.fleet.close()
        await server.bodies.close()


async def until_ready(server: Server, name: str) -> None:
    replicas = next(model.replicas for model in server.catalogue.models if name in model.names)
    async with asyncio.timeout(30):
        async for progress in replicas.changes():
            if progress.state == "ready":
                return


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka")


async def test_models_of_a_file_are_served(tmp_path: Path) -> None:
    models = {"poro": {**FAKE, "replicas": {"min": 1}}, "sleepy": {**FAKE, "aliases": ["other"]}}
    async with serving(tmp_path, models) as server, client_of(server) as client:
        assert server.fleet is not None
        await until_ready(server, "poro")
        body = {"model": "poro", "prompt": "Hi", "max_tokens": 4}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        refused = await client.post("/v1/completions", json={**body, "model": "other"})
        assert refused.json()["error"]["code"] == "model_starting"
        waiting = {**body, "model": "other", "stream": True}
        held = await client.post("/v1/completions", json=waiting, headers={"x-tokka-wait": "30"})
        assert held.text.endswith("data: [DONE]\n\n")
        assert "error" not in held.text
        poro, sleepy = server.fleet.status()
        assert (poro["name"], poro["state"], [one["state"] for one in poro["replicas"]]) == ("poro", "ready", ["ready"])
        assert sleepy["state"] == "ready"
        await server.fleet.scale("sleepy", 0)
        await server.fleet.drain("poro", poro["replicas"][0]["id"])
        with pytest.raises(ModelNotFound):
            await server.fleet.scale("nobody", 1)


async def test_scale_outlives_the_gateway(tmp_path: Path) -> None:
    models = {"poro": {**FAKE, "replicas": {"min": 0, "max": 2}}}
    async with serving(tmp_path, models) as server:
        assert server.fleet is not None
        await server.fleet.scale("poro", 2)
    async with serving(tmp_path, models) as server:
        assert server.fleet is not None
        assert server.fleet.status()[0]["fixed"] == 2
        (tmp_path / "state" / "fleet-scales.json").unlink()
        (tmp_path / "state" / "fleet-scales.json").mkdir()
        with pytest.raises(StateUnavailable, match="could not be saved"):
            await server.fleet.scale("poro", 1)


async def test_update_takes_changes_that_need_no_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, {"poro": FAKE, "other": FAKE}, hold=0) as server:
        assert server.fleet is not None
        fleet, join = server.fleet, str(server.fleet.file.join)
        changed = {**FAKE, "settings": {"engine": "fake", "max_num_seqs": 4}}
        write(tmp_path, {"poro": changed, "other": FAKE}, join=join)
        assert await fleet.update() == ["poro"]
        assert await fleet.update() == []
        for models, keys, named in (
            ({"poro": changed}, {}, "models.other"),
            ({"poro": changed, "other": {**FAKE, "aliases": ["x"]}}, {}, "models.other"),
            ({"poro": changed, "other": FAKE}, {"hold": 5}, "hold"),
        ):
            write(tmp_path, models, join=join, **keys)
            with pytest.raises(InvalidRequest, match=named):
                await fleet.update()
        write(tmp_path, {"poro": {"nonsense": 1}}, join=join)
        with pytest.raises(InvalidRequest, match="The fleet file was not taken"):
            await fleet.update()


async def test_taken_address_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        join = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"cannot listen on join: {join}"):
            async with serving(tmp_path, {"poro": FAKE}, join=join):
                pass


async def test_token_without_certificate_is_for_loopback(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    keys = {"join": f"0.0.0.0:{port()}", "join_token_file": str(tmp_path / "token")}
    with pytest.raises(ConfigurationError, match="holds no certificate"):
        async with serving(tmp_path, {"poro": FAKE}, **keys):
            pass


async def test_replica_that_this_machine_cannot_hold_is_refused(tmp_path: Path) -> None:
    models = {"fits": FAKE, "large": {**FAKE, "resources": {"gpus": 900, "memory": "900TiB"}}}
    with pytest.raises(ConfigurationError) as refused:
        async with serving(tmp_path, models):
            pass
    gpus, memory = str(refused.value).splitlines()
    assert "models.large.resources.gpus: a replica takes 900, and this machine has" in gpus
    assert "models.large.resources.memory: a replica takes more than the" in memory


async def test_models_that_always_run_decide_the_readiness(tmp_path: Path) -> None:
    broken = {"model": "/nonexistent", "replicas": {"min": 1}}
    async with serving(tmp_path, {"sleepy": FAKE, "broken": broken}) as server, client_of(server) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "sleepy asleep" in ready.json()["detail"]
    async with serving(tmp_path, {"sleepy": FAKE}) as server, client_of(server) as client:
        assert (await client.get("/readyz")).status_code == 200
        body = {"model": "sleepy", "prompt": "Hi", "max_tokens": 4}
        assert (await client.post("/v1/completions", json=body)).status_code == 503
        # It starts for the request: a balancer must not take the gateway away now.
        assert (await client.get("/readyz")).status_code == 200
        await until_ready(server, "sleepy")
        assert (await client.post("/v1/completions", json=body)).status_code == 200
