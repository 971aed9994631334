"""A gateway's HTTP API: the models of its fleet, their states and their replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.program import Program, free_port, running

ADMIN_KEY = "the-admin-key-of-the-test"
USER_KEY = "the-user-key-of-the-test"
FILE = """\
join: 127.0.0.1:{port}
models:
  poro:
    model: /models/poro
    replicas: {{min: 2, max: 2}}
    settings: {{engine: fake}}
  org/sleepy:
    aliases: [sleepy]
    model: /models/sleepy
    idle_after: 60s
    settings: {{engine: fake}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(FILE.format(port=free_port()))
    return path


@pytest.fixture(scope="module")
def program(file: Path) -> Iterator[Program]:
    with running("--fleet", str(file), "--admin-key", ADMIN_KEY, "--api-key", USER_KEY) as program:
        yield program


def client_of(program: Program, key: str) -> httpx.Client:
    return httpx.Client(base_url=program.url, headers={"authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture
def user(program: Program) -> Iterator[httpx.Client]:
    with client_of(program, USER_KEY) as client:
        yield client


def test_every_model_is_listed_with_its_state(user: httpx.Client) -> None:
    listed = {one["id"]: one["state"] for one in user.get("/v1/models").json()["data"]}
    assert listed == {"poro": "ready", "org/sleepy": "asleep", "sleepy": "asleep"}
    assert user.get("/v1/models/org/sleepy").json()["state"] == "asleep"
