"""The Node.js examples, installed from their lock file, against `tokka serve` with the scripted engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import npm
from tests.clients.conftest import FakeServer, RunExample

FOLDER = Path(__file__).parents[2] / "clients" / "node"

pytestmark = pytest.mark.node
Node = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the examples; return its folder."""
    folder = tmp_path_factory.mktemp("node") / "examples"
    npm.install_locked(FOLDER, folder)
    return folder


@pytest.fixture
def node(run_example: RunExample, installed: Path, server: FakeServer) -> Node:
    """Return a function that runs an example, checks that it succeeds, and returns its output."""

    def run(name: str) -> str:
        done = run_example(["node", name], server.url, cwd=installed)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def test_chat_prints_the_answer_and_its_tokens(node: Node, server: FakeServer) -> None:
    prompt_tokens = len(b"user: What is the capital of France?\n")
    assert node("chat.mjs").splitlines() == [
        "Question: What is the capital of France?",
        f"Answer: {server.answer}",
        "finish_reason: stop",
        f"{server.model} read {prompt_tokens} tokens and wrote {server.answer_tokens}.",
    ]


def test_stream_prints_pieces_and_ends_with_the_usage(node: Node, server: FakeServer) -> None:
    read = len(b"user: Tell me about Helsinki in three sentences.\n")
    written = server.answer_tokens
    assert node("stream.mjs").splitlines() == [
        server.answer,
        "finish_reason: stop",
        f"{len(server.answer)} pieces",
        f"{read} tokens read + {written} written = {read + written}",
    ]


def test_stop_and_length_prints_the_endings(node: Node, server: FakeServer) -> None:
    sentence = server.answer.partition(".")[0]
    printed = re.findall(
        r"answer: (.*)\n  finish_reason: (\w+), stop_reason: (.*)\n  tokens written: (\d+)\n",
        node("stop_and_length.mjs"),
    )
    stopped = len(f"{sentence}.".encode())
    assert [(json.loads(answer), *rest, int(tokens)) for answer, *rest, tokens in printed] == [
        (server.answer.encode()[:10].decode(errors="ignore"), "length", "null", 10),
        (server.answer, "stop", "null", server.answer_tokens),
        (sentence, "stop", ".", stopped),
        (f"{sentence}.", "stop", ".", stopped),
    ]


def test_every_example_fails_with_one_line_on_a_wrong_url(
    installed: Path, run_example: RunExample, server: FakeServer
) -> None:
    scripts = sorted(path.name for path in installed.glob("*.mjs"))
    assert len(scripts) == 3
    for script in scripts:
        done = run_example(["node", script], f"{server.url}/nothing-here", cwd=installed)
        assert done.returncode == 1, script
        assert done.stderr.startswith("NotFoundError: 404"), script
        assert len(done.stderr.splitlines()) == 1, script


def test_lock_file_names_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    assert all("resolved" not in package and package["integrity"] for package in packages.values())
    assert lock["packages"][""]["dependencies"] == {"openai": packages["node_modules/openai"]["version"]}
