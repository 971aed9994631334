"""`tokka chat`: messages in, responses out, and errors in plain words."""

from __future__ import annotations

import os
import subprocess

from tests.program import NO_SUCH_PROXY, TOKKA, Program, running


def chat(turns: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    command = [str(TOKKA), "chat", *arguments]
    env = {**os.environ, **(env or {})}
    done = subprocess.run(command, input=turns, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_turn_is_answered(fake: Program) -> None:
    code, output = chat("Hello\n", "--url", fake.url)
    assert code == 0
    assert "Päivää! This is Tokka's scripted engine" in output


def test_answer_cut_at_the_limit_says_so(fake: Program) -> None:
    code, output = chat("Hello\n", "--url", fake.url, "--max-completion-tokens", "5")
    assert code == 0
    assert "cut off at the length limit" in output


def test_history_goes_with_each_turn_and_can_be_taken_back() -> None:
    with running("--engine", "fake") as program:
        chat("One\nTwo\n/undo\nThree\n/reset\nFour\n", "--url", program.url, "--system", "Brief.")
        assert program.stop() == 0
        program.wait_for("stopped")
    sizes = [line["prompt_tokens"] for line in program.log if line.get("path") == "/v1/chat/completions"]
    one, two, three, four = sizes
    assert one < two
    # "Three" replaces "Two" and is two letters longer. The scripted engine has one token per byte.
    assert three == two + 2
    assert four == one + 1


def test_wrong_model_is_explained(fake: Program) -> None:
    code, output = chat("Hello\n", "--url", fake.url, "--model", "other")
    assert code == 1
    assert "does not exist" in output


def test_no_server_is_explained() -> None:
    code, output = chat("Hello\n", "--url", "http://127.0.0.1:9")
    assert code == 1
    assert "tokka serve" in output


def test_chat_goes_past_a_proxy_to_this_machine(fake: Program) -> None:
    code, output = chat("Hello\n", "--url", fake.url, env=NO_SUCH_PROXY)
    assert code == 0, output
