"""The server under load: its address, models, version and process."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from tokka.bench.address import Address, address_of, client_options
from tokka.bench.errors import BenchFailedError
from tokka.loopback import is_loopback

# Maximum seconds for the list of models. The list is cheap, but the server may be busy.
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load."""

    url: str
    model: str
    key: str
    # The server's response at /version, or empty.
    version: dict[str, Any]
    pid: int | None


def find(url: str, *, model: str | None, key: str, pid: int | None) -> Target:
    """Ask a server for its models and version. Raises BenchFailedError with the remedy if it cannot be loaded."""
    try:
        address = address_of(url)
    except ValueError as error:
        raise BenchFailedError(str(error)) from None
    root = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(headers=headers, timeout=_TIMEOUT_S, **client_options(url)) as client:
            served = _models(client.get(f"{root}/v1/models"), url)
            version = _version(client, root)
    except httpx.HTTPError as error:
        raise BenchFailedError(
            f"no connection to {url}: {error}. Is it the right address? `tokka serve` starts a server."
        ) from None
    if model is not None and model not in served:
        raise BenchFailedError(f"{url} has no model {model!r}; choose one with --model: {', '.join(served)}")
    if pid is not None and not psutil.pid_exists(pid):
        raise BenchFailedError(f"--pid {pid}: there is no such process on this machine")
    return Target(root, model or served[0], key, version, pid or listening_pid(address))


def listening_pid(address: Address) -> int | None:
    """Return the process that listens at the address, if it is on this machine and visible."""
    if not is_loopback(address.host):
        return None
    found: set[int] = set()
    # Other users' processes are not visible, and on some systems no process is.
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == address.port and one.pid:
                found.add(one.pid)
    # Child processes inherit the socket, so look for the topmost one.
    with contextlib.suppress(psutil.Error):
        roots = [pid for pid in found if found.isdisjoint(parent.pid for parent in psutil.Process(pid).parents())]
        # Two servers may share a port, and nothing tells which one responds.
        return roots[0] if len(roots) == 1 else None
    return None


def _models(response: httpx.Response, url: str) -> list[str]:
    if response.status_code != 200:
        remedy = "; give --api-key" if response.status_code in (401, 403) else ""
        raise BenchFailedError(f"{url} answered {response.status_code}: {_message(response)}{remedy}")
    try:
        served = [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        served = []
    if not served:
        raise BenchFailedError(f"{url} lists no model at /v1/models: is it an OpenAI-compatible server?")
    return served


def _version(client: httpx.Client, root: str) -> dict[str, Any]:
    with contextlib.suppress(httpx.HTTPError, ValueError):
        found = client.get(f"{root}/version").json()
        return found if isinstance(found, dict) else {}
    return {}


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase or "no reason given"
