"""The Python examples, with the published openai package, against `tokka serve` with the scripted engine."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import FakeServer, RunExample, StartServer

FOLDER = Path(__file__).parents[2] / "clients" / "python"
SCRIPTS = sorted(FOLDER.glob("*.py"), key=lambda path: path.name)

Python = Callable[..., str]


@pytest.fixture
def python(run_example: RunExample, server: FakeServer) -> Python:
    """Return a function that runs an example, checks that it succeeds, and returns its output."""

    def run(name: str) -> str:
        done = run_example([sys.executable, str(FOLDER / name)], server.url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def test_chat_prints_the_answer_and_its_tokens(python: Python, server: FakeServer) -> None:
    prompt_tokens = len(b"user: What is the capital of France?\n")
    assert python("chat.py").splitlines() == [
        "Question: What is the capital of France?",
        f"Answer: {server.answer}",
        "finish_reason: stop",
        f"{server.model} read {prompt_tokens} tokens and wrote {server.answer_tokens}.",
    ]


def test_async_chat_answers_every_question(python: Python, server: FakeServer) -> None:
    printed = python("async_chat.py")
    answers = re.findall(r"^(\w+) \(\d+\.\d\d s\): (.*)$", printed, re.MULTILINE)
    assert sorted(answers) == [(country, server.answer) for country in ["France", "Germany", "Italy", "Japan"]]
    assert "4 answers in " in printed


def test_async_chat_works_on_all_at_once(start_server: StartServer, run_example: RunExample) -> None:
    with start_server("--engine-arg", "prefill_delay_s=0.5") as slow:
        done = run_example([sys.executable, str(FOLDER / "async_chat.py")], slow.url)
    together, added_up = re.findall(r"(\d+\.\d\d) s[;.]", done.stdout)
    assert float(added_up) >= 4 * 0.5
    assert float(together) < float(added_up) / 2


def test_stream_prints_pieces_and_ends_with_the_usage(python: Python, server: FakeServer) -> None:
    answer, finish, pieces, usage = python("stream.py").splitlines()
    assert answer == server.answer
    assert finish == "finish_reason: stop"
    assert pieces.startswith(f"{len(server.answer)} pieces, the first after ")
    read = len(b"user: Tell me about Helsinki in three sentences.\n")
    written = server.answer_tokens
    assert usage == f"{read} tokens read + {written} written = {read + written}"


def test_stop_and_length_shows_each_way_to_end(python: Python, server: FakeServer) -> None:
    printed = python("stop_and_length.py")
    sections = re.split(r"^\d\. ", printed, flags=re.MULTILINE)[1:]
    found = [re.findall(r"answer: (.*)\n  finish_reason: (\w+), stop_reason: (.*)\n", section) for section in sections]

    def cut(tokens: int) -> str:
        return repr(server.answer.encode()[:tokens].decode(errors="ignore"))

    sentence = server.answer.partition(".")[0]
    assert found == [
        [(cut(16), "length", "None")],
        [(cut(10), "length", "None")],
        [(repr(server.answer), "stop", "None")],
        [(repr(sentence), "stop", ".")],
        [(repr(f"{sentence}."), "stop", ".")],
        [(cut(20), "length", "None")] * 3,
        [],
    ]
    written = [int(tokens) for tokens in re.findall(r"tokens written: (\d+)", printed)]
    stopped = len(f"{sentence}.".encode())
    assert written == [16, 10, server.answer_tokens, stopped, stopped, 3 * 20]
    assert printed.endswith("the same three answers: yes\n")


def test_completions_continue_and_score_a_text(python: Python, server: FakeServer) -> None:
    printed = python("completions.py")
    assert f"Continued: {server.answer.encode()[:24].decode(errors='ignore')}\nfinish_reason: length\n" in printed
    prompt = "The capital of France is"
    scores = re.findall(r"^ +(-|-\d+\.\d\d)  '(.)'$", printed, re.MULTILINE)
    assert "".join(token for _, token in scores) == prompt
    assert [logprob == "-" for logprob, _ in scores] == [True] + [False] * (len(prompt) - 1)
    assert printed.endswith(f"{len(prompt)} tokens read, 0 written\n")


def test_tools_prints_a_text_where_nothing_is_called(python: Python, server: FakeServer) -> None:
    assert python("tools.py").splitlines() == [
        "Question: What is the weather in Oulu?",
        "finish_reason: stop",
        f"Answer: {server.answer}",
    ]


def test_tools_example_runs_the_function_that_the_model_calls(
    start_server: StartServer, run_example: RunExample
) -> None:
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oulu"}}</tool_call>'
    with start_server("--engine-arg", f"answer={call}") as calling:
        done = run_example([sys.executable, str(FOLDER / "tools.py")], calling.url)
    assert done.stdout.splitlines() == [
        "Question: What is the weather in Oulu?",
        "finish_reason: tool_calls",
        'Call: get_weather({"city": "Oulu"}) = -3 degrees and snow in Oulu',
        # The scripted engine repeats its answer; with `tool_choice: "none"` it is text, not a tool call.
        f"Answer: {call}",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_example_fails_with_one_line_on_a_wrong_url(
    script: Path, run_example: RunExample, server: FakeServer
) -> None:
    done = run_example([sys.executable, str(script)], f"{server.url}/nothing-here")
    assert done.returncode == 1
    assert done.stderr.startswith("NotFoundError: Error code: 404")
    assert len(done.stderr.splitlines()) == 1


def test_every_example_passes_its_key_on(start_server: StartServer, run_example: RunExample) -> None:
    with start_server("--api-key", "example-key-1234") as locked:
        for script in SCRIPTS:
            command = [sys.executable, str(script)]
            assert run_example(command, locked.url, key="example-key-1234").returncode == 0, script.name
        refused = run_example([sys.executable, str(FOLDER / "chat.py")], locked.url)
        assert refused.returncode == 1
        assert refused.stderr.startswith("AuthenticationError: Error code: 401")
