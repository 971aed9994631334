"""Clients that offer HTTP/2 in their first request get HTTP/1.1 responses, and HTTP/1.0 clients read a stream."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import FakeServer
from tests.needs import need

RUN_S = 100
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(server: FakeServer, *options: str) -> tuple[str, str]:
    """Send a request with curl; return the body, and the version and status of the response."""
    need("curl")
    shown = ("--silent", "--show-error", "--write-out", "\n%{http_version} %{http_code}")
    body, _, told = run("curl", *shown, *options, f"{server.url}/v1/chat/completions").rpartition("\n")
    return body, told


@pytest.mark.timeout(RUN_S)
def test_java_http_client_is_answered(server: FakeServer) -> None:
    need("javac")
    plain, stream = (json.dumps({**QUESTION, "model": server.model, "stream": stream}) for stream in (False, True))
    out = run("java", str(Path(__file__).with_name("Upgrade.java")), server.url, plain, stream)
    *answers, first, second = out.splitlines()
    assert len(answers) == 3
    for answer in answers:
        version, status, body = answer.split(" ", 2)
        assert (version, status) == ("HTTP_1_1", "200")
        assert json.loads(body)["choices"][0]["message"]["content"] == server.answer
    assert first == second == "HTTP_1_1 200 data: [DONE]"


@pytest.mark.parametrize("padding", [0, 20_000])
def test_curl_that_offers_http_2_is_answered(server: FakeServer, tmp_path: Path, padding: int) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({**QUESTION, "model": server.model}) + " " * padding)
    answer, told = curl(server, "--http2", "--json", f"@{body}")
    assert told == "1.1 200"
    assert json.loads(answer)["choices"][0]["message"]["content"] == server.answer


def test_curl_that_offers_http_2_and_waits_to_continue(server: FakeServer) -> None:
    body = json.dumps({**QUESTION, "model": server.model})
    answer, told = curl(server, "--http2", "--header", "Expect: 100-continue", "--json", body)
    assert told == "1.1 200"
    assert json.loads(answer)["choices"][0]["message"]["content"] == server.answer


def test_curl_with_http_1_0_reads_a_stream_to_its_end(server: FakeServer) -> None:
    body = json.dumps({**QUESTION, "model": server.model, "stream": True})
    answer, told = curl(server, "--http1.0", "--no-buffer", "--json", body)
    assert told.endswith(" 200")
    assert answer.startswith("data: {")
    assert answer.endswith("data: [DONE]\n\n")
