"""A gateway's HTTP API: the models of its fleet, their states and their replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest

from tests.program import Program, eventually, free_port, running
from tests.wire import metric
from tokka.observability.metrics import REPLICA_STATES
from tokka.protocol.fleet import FleetStatus

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
FAILING = """\
join: 127.0.0.1:{port}
models:
  broken: {{model: /no/such/model, replicas: {{min: 1}}}}
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


@pytest.fixture
def admin(program: Program) -> Iterator[httpx.Client]:
    with client_of(program, ADMIN_KEY) as client:
        yield client


def status(admin: httpx.Client, name: str) -> dict[str, Any]:
    """Return a model's status, which must have the documented form."""
    body = admin.get("/admin/fleet").json()
    FleetStatus.model_validate(body, strict=True)
    (found,) = [model for model in body["models"] if model["name"] == name]
    return cast(dict[str, Any], found)


def ready(admin: httpx.Client, name: str) -> list[str]:
    return [one["id"] for one in status(admin, name)["replicas"] if one["state"] == "ready"]


def refusal(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def test_every_model_is_listed_with_its_state(user: httpx.Client) -> None:
    listed = {one["id"]: one["state"] for one in user.get("/v1/models").json()["data"]}
    assert listed == {"poro": "ready", "org/sleepy": "asleep", "sleepy": "asleep"}
    assert user.get("/v1/models/org/sleepy").json()["state"] == "asleep"


# -- metrics


def replicas(admin: httpx.Client, model: str) -> dict[str, float]:
    return {state: metric(admin, "tokka_replicas", model=model, state=state) for state in REPLICA_STATES}


def test_metrics_count_the_replicas_of_each_model(admin: httpx.Client) -> None:
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    none = {"starting": 0.0, "ready": 0.0, "draining": 0.0, "failed": 0.0}
    assert replicas(admin, "poro") == {**none, "ready": 2.0}
    assert replicas(admin, "org/sleepy") == none
    # The controller counts a start at its next look.
    eventually(lambda: metric(admin, "tokka_replica_starts_total", model="poro", outcome="ready") >= 2, within_s=10)
    assert metric(admin, "tokka_replica_starts_total", model="poro", outcome="failed") == 0


def test_metrics_count_failed_starts(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FAILING.format(port=free_port()))
    with (
        running("--fleet", str(file), "--admin-key", ADMIN_KEY, wait=False) as program,
        client_of(program, ADMIN_KEY) as client,
    ):
        labels = {"model": "broken", "outcome": "failed"}
        eventually(lambda: metric(client, "tokka_replica_starts_total", **labels) >= 2, within_s=60)
        broken = status(client, "broken")
        assert (broken["state"], metric(client, "tokka_model_ready", model="broken")) == ("failed", 0)
        assert broken["failure"]
        assert client.get("/v1/models/broken").json()["state"] == "failed"


def test_workers_of_an_earlier_gateway_are_no_starts(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE.format(port=free_port()))
    command = ("--fleet", str(file), "--admin-key", ADMIN_KEY, "--state-dir", str(tmp_path / "state"))
    with running(*command) as first, client_of(first, ADMIN_KEY) as client:
        eventually(lambda: len(ready(client, "poro")) == 2, within_s=60)
        workers = ready(client, "poro")
        first.process.kill()
        first.process.wait()
    with running(*command) as second, client_of(second, ADMIN_KEY) as client:
        eventually(lambda: set(ready(client, "poro")) == set(workers), within_s=60)
        assert [line["event"] for line in second.log].count("worker_found") == 2
        # A start of the other model comes after the looks at the found workers.
        client.post("/admin/fleet/scale", json={"model": "org/sleepy", "replicas": 1})
        eventually(lambda: metric(client, "tokka_replica_starts_total", model="org/sleepy", outcome="ready") == 1, 60)
        assert metric(client, "tokka_replica_starts_total", model="poro", outcome="ready") == 0


# -- Aitta's form


def test_workers_of_a_model_are_its_replicas(user: httpx.Client, admin: httpx.Client) -> None:
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    listed = user.get("/worker").json()["_links"]["item"]
    assert {one["name"] for one in listed} == set(ready(admin, "poro"))
    assert user.get("/model/poro").json()["_links"]["worker"] == listed
    for link in listed:
        worker = user.get(link["href"]).json()
        assert (worker["id"], worker["model"], worker["retry_after_s"]) == (link["name"], "poro", 0)
        assert (worker["state"], worker["phase"]) == ("ready", "ready")
        assert "running" not in worker
        assert admin.get(link["href"]).json()["running"] == 0
    missing = user.get("/worker/org~sleepy/1")
    assert (missing.status_code, missing.json()["error"]) == (404, "worker_not_found")


# -- /admin/fleet


def test_status_shows_models_and_replicas(admin: httpx.Client) -> None:
    assert [model["name"] for model in admin.get("/admin/fleet").json()["models"]] == ["poro", "org/sleepy"]
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    poro, sleepy = status(admin, "poro"), status(admin, "org/sleepy")
    assert (poro["state"], sleepy["state"], sleepy["replicas"]) == ("ready", "asleep", [])
    for replica in poro["replicas"]:
        assert (replica["launcher"], replica["running"]) == ("local", 0)
        assert replica["id"] in " ".join(psutil.Process(replica["pid"]).cmdline())


def test_scale_fixes_the_number_of_replicas(admin: httpx.Client) -> None:
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    answer = admin.post("/admin/fleet/scale", json={"model": "poro", "replicas": 1})
    FleetStatus.model_validate(answer.json(), strict=True)
    eventually(lambda: len(status(admin, "poro")["replicas"]) == 1, within_s=60)
    assert status(admin, "poro")["fixed"] == 1
    admin.post("/admin/fleet/scale", json={"model": "poro", "replicas": None})
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    assert status(admin, "poro")["fixed"] is None


def test_drain_replaces_a_replica(admin: httpx.Client) -> None:
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    gone, stays = ready(admin, "poro")
    answer = admin.post("/admin/fleet/drain", json={"model": "poro", "replica": gone})
    assert answer.status_code == 200
    eventually(lambda: gone not in str(status(admin, "poro")) and len(ready(admin, "poro")) == 2, within_s=60)
    assert stays in ready(admin, "poro")


def test_update_names_the_models_that_it_replaces(admin: httpx.Client, file: Path) -> None:
    eventually(lambda: len(ready(admin, "poro")) == 2, within_s=60)
    assert admin.post("/admin/fleet/update").json() == {"replaced": []}
    before, text = set(ready(admin, "poro")), file.read_text()
    file.write_text(text.replace("{engine: fake}", "{engine: fake, max_model_len: 2048}", 1))
    assert admin.post("/admin/fleet/update").json() == {"replaced": ["poro"]}
    eventually(lambda: len(after := ready(admin, "poro")) == 2 and before.isdisjoint(after), within_s=90)
    file.write_text(f"{text}  - broken")
    code, _, message = refusal(admin.post("/admin/fleet/update"))
    assert code == 400
    assert message.startswith("The fleet file was not taken: ")
    assert len(ready(admin, "poro")) == 2


@pytest.mark.parametrize(
    ("path", "body", "code", "param", "part"),
    [
        ("scale", {"model": "none", "replicas": 1}, 404, "model", "The fleet has no model `none`"),
        ("scale", {"model": "poro"}, 400, "replicas", "replicas"),
        ("scale", {"model": "poro", "replicas": -1}, 400, "replicas", "0"),
        ("scale", {"model": "poro", "replicas": 3}, 400, "replicas", "raise `max` in the fleet file"),
        ("scale", {"model": "poro", "replicas": "2"}, 400, "replicas", "integer"),
        ("drain", {"model": "none"}, 404, "model", "The fleet has no model `none`"),
        ("drain", {"model": "poro", "replica": "w9"}, 400, "replica", "has no replica `w9`"),
        ("drain", {"replica": "w9"}, 400, "model", "model"),
    ],
)
def test_wrong_requests_name_the_field(
    admin: httpx.Client, path: str, body: dict[str, Any], code: int, param: str, part: str
) -> None:
    status_code, field, message = refusal(admin.post(f"/admin/fleet/{path}", json=body))
    assert (status_code, field) == (code, param)
    assert part in message


def test_only_an_admin_key_reaches_the_fleet(user: httpx.Client) -> None:
    assert user.get("/admin/fleet").status_code == 403
    for path in ("scale", "drain", "update"):
        assert user.post(f"/admin/fleet/{path}", json={"model": "poro", "replicas": 0}).status_code == 403


def test_server_without_a_fleet_says_so() -> None:
    with running("--engine", "fake", "--admin-key", ADMIN_KEY) as program, client_of(program, ADMIN_KEY) as client:
        answers = [client.get("/admin/fleet"), client.post("/admin/fleet/update")]
        answers.append(client.post("/admin/fleet/scale", json={"model": "fake", "replicas": 2}))
        answers.append(client.post("/admin/fleet/drain", json={"model": "fake"}))
    for answer in answers:
        assert refusal(answer) == (404, None, "This server has no fleet. Start it with `tokka serve --fleet FILE`.")
