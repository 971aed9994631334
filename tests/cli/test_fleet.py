"""`tokka fleet` against a real gateway: tables, JSON, and errors as one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.program import NO_SUCH_PROXY, Program, eventually, free_port, running
from tokka.cli import app

KEY = "the-admin-key-of-the-test"
FILE = """\
join: 127.0.0.1:{port}
models:
  poro: {{model: /models/poro, replicas: {{min: 2, max: 2}}, settings: {{engine: fake}}}}
  org/sleepy: {{model: /models/sleepy, settings: {{engine: fake}}}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(FILE.format(port=free_port()))
    return path


@pytest.fixture(scope="module")
def gateway(file: Path) -> Iterator[Program]:
    with running("--fleet", str(file), "--admin-key", KEY, "--api-key", "of-a-user") as program:
        yield program


def fleet(url: str, *arguments: str, code: int = 0, key: str = KEY) -> Result:
    environment = {"TOKKA_API_KEY": key, **NO_SUCH_PROXY}
    result = CliRunner().invoke(app, ["fleet", *arguments, "--url", url], env=environment)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def models(gateway: Program) -> dict[str, dict[str, Any]]:
    found = json.loads(fleet(gateway.url, "status", "--json").stdout)
    return {model["name"]: model for model in found["models"]}


def ready(gateway: Program) -> list[str]:
    return [one["id"] for one in models(gateway)["poro"]["replicas"] if one["state"] == "ready"]


def until(fact: Callable[[], bool]) -> None:
    eventually(fact, within_s=60)


def test_json_has_the_fields_of_the_contract(gateway: Program) -> None:
    until(lambda: len(ready(gateway)) == 2)
    body = json.loads(fleet(gateway.url, "status", "--json").stdout)
    assert body.keys() == {"models"}
    poro, sleepy = body["models"]
    assert sleepy == {"name": "org/sleepy", "state": "asleep", "replicas": []}
    assert (poro.keys(), poro["state"]) == (sleepy.keys(), "ready")
    for replica in poro["replicas"]:
        assert replica.keys() == {"id", "state", "node", "pid", "running"}
        assert (replica["state"], replica["running"], type(replica["pid"])) == ("ready", 0, int)


def test_table_has_a_row_for_each_replica(gateway: Program) -> None:
    until(lambda: len(ready(gateway)) == 2)
    head, *rows = fleet(gateway.url, "status").stdout.splitlines()
    assert head.split("  ")[0] == "model"
    assert "replica state" in head
    assert {row.split()[2] for row in rows[:2]} == set(ready(gateway))
    assert [row.split()[:2] for row in rows] == [["poro", "ready"]] * 2 + [["org/sleepy", "asleep"]]


def test_scale_fixes_a_number_and_auto_undoes_it(gateway: Program) -> None:
    until(lambda: len(ready(gateway)) == 2)
    assert fleet(gateway.url, "scale", "poro", "1").stdout == "poro: fixed at 1\n"
    until(lambda: len(models(gateway)["poro"]["replicas"]) == 1)
    assert "fixed at 1" in fleet(gateway.url, "status").stdout
    assert fleet(gateway.url, "scale", "poro", "auto").stdout == "poro: the requests decide\n"
    until(lambda: len(ready(gateway)) == 2)


def test_drain_replaces_one_replica_or_all(gateway: Program) -> None:
    until(lambda: len(ready(gateway)) == 2)
    one, other = ready(gateway)
    assert fleet(gateway.url, "drain", "poro", one).stdout == f"poro: draining {one}\n"
    until(lambda: one not in str(models(gateway)) and len(ready(gateway)) == 2)
    assert other in ready(gateway)
    fleet(gateway.url, "drain", "poro")
    until(lambda: other not in str(models(gateway)) and len(ready(gateway)) == 2)
    assert fleet(gateway.url, "drain", "org/sleepy").stdout == "org/sleepy: no replica to drain\n"


def test_update_names_replaced_models(gateway: Program, file: Path) -> None:
    assert fleet(gateway.url, "update").stdout == "no model has changed\n"
    file.write_text(file.read_text().replace("/models/sleepy", "/models/other"))
    assert fleet(gateway.url, "update").stdout == "org/sleepy: replacing its replicas\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("scale", "none", "1"), "The fleet has no model `none`"),
        (("scale", "poro", "9"), "The maximum of `poro` is 2; raise `max` in the fleet file."),
        (("scale", "poro", "many"), "N: 'many' is not a number of replicas; write 0, 1, 2, ... or auto"),
        (("scale", "poro", "²"), "is not a number of replicas"),
        (("drain", "poro", "w9"), "`poro` has no replica `w9`"),
    ],
)
def test_wrong_usage_is_one_line(gateway: Program, arguments: tuple[str, ...], part: str) -> None:
    result = fleet(gateway.url, *arguments, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("tokka: ")
    assert part in line


@pytest.mark.parametrize("key", ["wrong", "of-a-user", "ä"])
def test_wrong_key_names_the_variable(gateway: Program, key: str) -> None:
    (line,) = fleet(gateway.url, "status", code=2, key=key).stderr.splitlines()
    assert "TOKKA_API_KEY" in line


def test_url_with_v1_is_the_gateway_too(gateway: Program) -> None:
    assert "poro" in fleet(f"{gateway.url}/v1/", "status").stdout


def test_missing_gateway_is_one_line_with_code_1() -> None:
    (line,) = fleet(f"http://127.0.0.1:{free_port()}", "status", code=1).stderr.splitlines()
    assert line.endswith("Is the gateway running?")
    (line,) = fleet("localhost", "status", code=2).stderr.splitlines()
    assert line.startswith("tokka: --url: 'localhost' is not the URL of a server")


class Foreign(BaseHTTPRequestHandler):
    """Another program's server: /admin/fleet is a web page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def test_response_of_another_program_is_named() -> None:
    with HTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        (line,) = fleet(f"http://127.0.0.1:{server.server_port}", "status", code=1).stderr.splitlines()
        thread.join()
    assert line.endswith("is not from a Tokka gateway; check --url")
