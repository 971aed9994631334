"""Files of prompts: plain text and JSONL, and errors that name the line or the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokka.bench.errors import BenchFailedError
from tokka.bench.prompts import read_prompts

MESSAGES = '{"messages":[{"role":"user","content":"a"}]}'


def test_plain_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes('one\r\n\n {"prompt": "as it is"}\nzwei ü\u2028'.encode())
    assert read_prompts(file, "chat") == (
        {"prompt": "one"},
        {"prompt": ' {"prompt": "as it is"}'},
        {"prompt": "zwei ü\u2028"},
    )


def test_jsonl_has_prompts_and_conversations(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    # Unknown fields are allowed, since data sets have ids.
    file.write_text(f'{{"prompt":"one","id":7}}\n{MESSAGES}\n')
    one, two = read_prompts(file, "chat")
    assert one == {"prompt": "one"}
    assert two == {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file has no lines"),
        ("not json", "line 1 is not JSON"),
        ('{"prompt":"a"}\n\n{"prompt":1}', 'line 3 is not {"prompt": "..."}'),
        (MESSAGES, "line 1 has messages; use --api chat"),
    ],
)
def test_read_prompts_names_the_error(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(BenchFailedError) as failure:
        read_prompts(file, "completions")
    assert reason in str(failure.value)


def test_file_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts"
    with pytest.raises(BenchFailedError, match="No such file"):
        read_prompts(file, "chat")
    file.write_bytes(b"\xff\n")
    with pytest.raises(BenchFailedError, match="not UTF-8"):
        read_prompts(file, "chat")
    monkeypatch.setattr("tokka.bench.prompts.MAX_FILE_BYTES", 1 << 20)
    file.write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(BenchFailedError, match="more than 1 MiB"):
        read_prompts(file, "chat")
