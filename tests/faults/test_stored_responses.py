"""A killed server loses no response that a client has in full."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx

from tests.program import Program, running

BODY = {"model": "fake", "input": "Hei"}
# Responses that clients have in full before the kill.
BEFORE = 60


def create(program: Program, *, stream: bool) -> dict[str, Any] | None:
    """Return a whole response, or None if the server was killed meanwhile."""
    try:
        with program.client() as client:
            answer = client.post("/v1/responses", json={**BODY, "stream": stream})
    except httpx.HTTPError:
        return None
    if not stream:
        made: dict[str, Any] = answer.json()
        return made
    lasts = [line for line in answer.text.splitlines() if '"type":"response.completed"' in line]
    whole: dict[str, Any] = json.loads(lasts[0].removeprefix("data: "))["response"]
    return whole


def test_kill_loses_no_response_that_a_client_has(tmp_path: Path) -> None:
    whole: list[dict[str, Any]] = []
    enough = threading.Event()
    options = ("--engine", "fake", "--state-dir", str(tmp_path))
    with running(*options) as program:

        def ask(stream: bool) -> None:
            while made := create(program, stream=stream):
                whole.append(made)
                if len(whole) >= BEFORE:
                    enough.set()

        threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        program.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
        program.process.wait()
    assert all(made["store"] for made in whole)
    with running(*options) as program, program.client() as client:
        for made in whole:
            assert client.get(f"/v1/responses/{made['id']}").json() == made
        assert program.stop() == 0
