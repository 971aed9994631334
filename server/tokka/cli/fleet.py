"""`tokka fleet`: the models and replicas of a running gateway, over its admin API."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from tokka.cli.state import fail

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel

    from tokka.protocol.fleet import FleetModelObject, FleetStatus

    Answer = TypeVar("Answer", bound=BaseModel)

app = typer.Typer(no_args_is_help=True, help="A gateway's models and replicas: status, scale, drain, update.")

Url = Annotated[str, typer.Option(help="URL of the gateway, which `tokka serve --fleet FILE` runs.")]
ApiKey = Annotated[
    str, typer.Option(envvar="TOKKA_API_KEY", help="Key with the scope admin, sent as a bearer token.", metavar="KEY")
]
Name = Annotated[str, typer.Argument(help="Name of the model in the fleet file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_URL = "http://127.0.0.1:8000"
_NO_KEY = "none"
_ADMIN = "/admin/fleet"
_COLUMNS = ("model", "state", "replica", "replica state", "node", "pid", "running", "note")
# Fields of the JSON, which scripts rely on.
_REPLICA_FIELDS = {"id", "state", "node", "pid", "running"}
_FIELDS: dict[str, Any] = {"name": True, "state": True, "replicas": {"__all__": _REPLICA_FIELDS}}
# Maximum seconds to connect, and to wait for the response.
_CONNECT_S, _READ_S = 10.0, 60.0


@app.command()
def status(url: Url = _URL, api_key: ApiKey = _NO_KEY, as_json: Json = False) -> None:
    """Show every model with its state and its replicas."""
    from tokka.cli.table import print_table
    from tokka.protocol.fleet import FleetStatus

    found = _call(FleetStatus, url, api_key, "GET", "")
    if as_json:
        print(json.dumps(found.model_dump(include={"models": {"__all__": _FIELDS}}), indent=2))
    else:
        print_table(_COLUMNS, [row for model in found.models for row in _rows(model)])


@app.command()
def scale(
    name: Name,
    number: Annotated[str, typer.Argument(metavar="N|auto", help="Replicas. auto: let the requests decide again.")],
    url: Url = _URL,
    api_key: ApiKey = _NO_KEY,
) -> None:
    """Fix the number of replicas of a model. At 0, no request starts the model."""
    if number != "auto" and not (number.isascii() and number.isdigit()):
        fail(f"N: {number[:40]!r} is not a number of replicas; write 0, 1, 2, ... or auto")
    replicas = None if number == "auto" else int(number)
    _post(url, api_key, "/scale", {"model": name, "replicas": replicas})
    print(f"{name}: " + ("the requests decide" if replicas is None else f"fixed at {replicas}"))


@app.command()
def drain(
    name: Name,
    replica: Annotated[str | None, typer.Argument(metavar="[ID]", help="One replica. Default: all.")] = None,
    url: Url = _URL,
    api_key: ApiKey = _NO_KEY,
) -> None:
    """Replace replicas: they finish their in-flight requests, and others start as needed."""
    found = _post(url, api_key, "/drain", {"model": name, "replica": replica})
    replicas = next((model.replicas for model in found.models if model.name == name), [])
    draining = [one.id for one in replicas if one.state == "draining"]
    print(f"{name}: draining {', '.join(draining)}" if draining else f"{name}: no replica to drain")


@app.command()
def update(url: Url = _URL, api_key: ApiKey = _NO_KEY) -> None:
    """Read the fleet file again, and replace the replicas of models whose entry has changed."""
    from tokka.protocol.fleet import FleetUpdate

    for name in (replaced := _call(FleetUpdate, url, api_key, "POST", "/update").replaced):
        print(f"{name}: replacing its replicas")
    if not replaced:
        print("no model has changed")


def _rows(model: FleetModelObject) -> list[list[object]]:
    """Return the rows of a model: one for each replica, or one without."""
    notes = []
    if model.fixed is not None:
        notes.append(f"fixed at {model.fixed}")
    if model.failure is not None and model.state in ("failed", "starting"):
        notes.append(f"last failure: {model.failure}")
    if not model.replicas:
        return [[model.name, model.state, "", "", "", "", "", "; ".join(notes)]]
    rows: list[list[object]] = []
    for one in model.replicas:
        here = [*notes, one.phase] if one.phase else notes
        pid = "" if one.pid is None else one.pid
        rows.append([model.name, model.state, one.id, one.state, one.node, pid, one.running, "; ".join(here)])
        notes = []
    return rows


def _post(url: str, api_key: str, path: str, body: dict[str, Any]) -> FleetStatus:
    from tokka.protocol.fleet import FleetStatus

    return _call(FleetStatus, url, api_key, "POST", path, body)


def _call(
    answer: type[Answer], url: str, api_key: str, method: str, path: str, body: dict[str, Any] | None = None
) -> Answer:
    """Call the gateway. Print a failure as one line: code 2 if the request is wrong, 1 if the gateway is."""
    import httpx
    from pydantic import ValidationError

    from tokka.bench.address import address_of, client_options

    try:
        address_of(url)
    except ValueError as error:
        fail(f"--url: {error}")
    if not (api_key.isascii() and api_key.isprintable()):
        fail("TOKKA_API_KEY: the key has characters that no key has; copy it again")
    # The base URLs of OpenAI's clients end with /v1.
    base_url = url.rstrip("/").removesuffix("/v1")
    timeout = httpx.Timeout(_CONNECT_S, read=_READ_S)
    headers = {"authorization": f"Bearer {api_key.strip()}"}
    try:
        with httpx.Client(base_url=base_url, headers=headers, timeout=timeout, **client_options(url)) as client:
            response = client.request(method, f"{_ADMIN}{path}", json=body)
    except httpx.HTTPError as error:
        _give_up(f"no response from {url}: {error or type(error).__name__}. Is the gateway running?")
    if response.is_client_error:
        fail(_reason(response))
    if response.status_code != httpx.codes.OK:
        _give_up(_reason(response))
    try:
        return answer.model_validate_json(response.content)
    except ValidationError:
        _give_up(f"the response of {url} is not from a Tokka gateway; check --url")


def _reason(response: httpx.Response) -> str:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server returned status {response.status_code}"
    if response.status_code in (401, 403):
        return f"{message} Set TOKKA_API_KEY to a key with the scope admin."
    return message


def _give_up(message: str) -> NoReturn:
    print(f"tokka: {message}", file=sys.stderr)
    raise typer.Exit(1)
