"""The curl examples against `tokka serve` with the scripted engine: output, errors, keys, and shellcheck."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import FakeServer, RunExample, StartServer

FOLDER = Path(__file__).parents[2] / "clients" / "curl"
SCRIPTS = sorted(FOLDER.glob("*.sh"), key=lambda path: path.name)
NOBODY = "http://127.0.0.1:9"  # the discard port: refused at once

Curl = Callable[..., str]


@pytest.fixture
def curl(run_example: RunExample, server: FakeServer) -> Curl:
    """Return a function that runs a script, checks that it succeeds, and returns its output."""

    def run(name: str) -> str:
        done = run_example([str(FOLDER / name)], server.url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def test_chat_prints_the_whole_answer_as_json(curl: Curl, server: FakeServer) -> None:
    answer = json.loads(curl("chat.sh"))
    assert answer["object"] == "chat.completion"
    assert answer["model"] == server.model
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": server.answer,
        "refusal": None,
        "annotations": [],
    }
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == server.answer_tokens


def test_stream_prints_every_piece_and_the_usage(curl: Curl, server: FakeServer) -> None:
    *events, end, after = curl("stream.sh").split("\n\n")
    assert (end, after) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    pieces = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == server.answer
    # Each character arrives as one piece, also one of several bytes.
    assert len([piece for piece in pieces if piece]) == len(server.answer)
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == server.answer_tokens


def test_stop_and_length_prints_the_three_endings(curl: Curl, server: FakeServer) -> None:
    sentence = server.answer.partition(".")[0]
    printed = re.findall(r"answer: +(.*)\n +finish_reason: (.*)\n +stop_reason: +(.*)\n", curl("stop_and_length.sh"))
    assert printed == [
        (server.answer.encode()[:10].decode(errors="ignore"), "length", "None"),
        (server.answer, "stop", "None"),
        (sentence, "stop", "."),
    ]


def test_completions_echo_the_prompt_and_score_each_token(curl: Curl, server: FakeServer) -> None:
    printed = curl("completions_echo_logprobs.sh")
    prompt = "The capital of France is"
    generated = server.answer.encode()[:8]
    assert f"text:          {prompt}{generated.decode(errors='ignore')}\n" in printed
    assert "finish_reason: length\n" in printed
    scores = re.findall(r"^ +(-|-\d+\.\d\d)  (.+)$", printed.partition("logprob  token\n")[2], re.MULTILINE)
    assert len(scores) == len(prompt) + len(generated)
    assert scores[0] == ("-", "'T'")
    assert all(logprob != "-" for logprob, _ in scores[1:])


def test_errors_show_status_field_and_reason(curl: Curl, server: FakeServer) -> None:
    printed = curl("errors.sh")
    assert re.findall(r"-> HTTP (\d+)", printed) == ["404", "400", "400", "400"]
    bodies = [json.loads(body)["error"] for body in re.findall(r"^\{$.*?^\}$", printed, re.MULTILINE | re.DOTALL)]
    assert [(body["param"], body["code"]) for body in bodies] == [
        ("model", "model_not_found"),
        ("messages", "invalid_value"),
        ("temperature", "invalid_value"),
        ("messages", "context_length_exceeded"),
    ]
    assert server.model in bodies[0]["message"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_fails_without_a_server(script: Path, run_example: RunExample) -> None:
    done = run_example([str(script)], NOBODY)
    assert done.returncode == 1
    assert "curl: (7)" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_script_passes_its_key_on(start_server: StartServer, run_example: RunExample) -> None:
    with start_server("--api-key", "example-key-1234") as locked:
        for script in SCRIPTS:
            assert run_example([str(script)], locked.url, key="example-key-1234").returncode == 0, script.name
            refused = run_example([str(script)], locked.url)
            assert refused.returncode == 1, script.name
            assert '"code":"invalid_api_key"' in refused.stderr, script.name


def test_shellcheck_finds_nothing() -> None:
    # In a virtual environment shellcheck is next to the interpreter, elsewhere on PATH.
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "shellcheck is in the dev dependencies"
    done = subprocess.run([found, *SCRIPTS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
