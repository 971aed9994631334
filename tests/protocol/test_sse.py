"""Server-sent events: all readers split them alike, whichever characters they treat as line ends."""

from __future__ import annotations

import json
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.program import Program, running
from tests.wire import post, stream, text_of
from tokka.protocol import sse

# All line ends of `str.splitlines`, and characters with neighbouring bytes in UTF-8.
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
NEIGHBOURS = "\xa8\xa9\u0145\u2027\u202a\u2828\u8028\U00020028å“”…\x7f"
ANSWER = f"one\x85two\u2028three\u2029four {NEIGHBOURS} äö 你好 🦌"


@given(st.text(st.sampled_from(LINE_ENDS + NEIGHBOURS + 'a"\\'), max_size=40))
def test_event_is_one_line_of_the_same_data(text: str) -> None:
    event = sse.json_event(orjson.dumps({"text": text}))
    line, empty = event.decode().splitlines()
    assert empty == ""
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


def test_named_event_is_two_lines() -> None:
    name, data, empty = sse.event({"detail": LINE_ENDS}, "phase").decode().splitlines()
    assert (name, empty) == ("event: phase", "")
    assert json.loads(data.removeprefix("data: ")) == {"detail": LINE_ENDS}


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running("--engine", "fake", "--engine-arg", f"answer={ANSWER}") as program:
        yield program


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_reader_of_lines_gets_whole_events(program: Program, path: str) -> None:
    """httpx, on which many clients are built, also splits at U+2028, U+2029 and U+0085."""
    asked = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x", "max_tokens": 200}
    with program.client() as client:
        body = {"model": program.model, **asked}
        with client.stream("POST", path, json={**body, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert text_of(chunks) == ANSWER == text_of(stream(client, path, body))
        choice = post(client, path, body)["choices"][0]
        assert (choice["message"]["content"] if "chat" in path else choice["text"]) == ANSWER


def test_parts_of_events_are_their_names_and_data() -> None:
    data = [b'{"text":"a: b"}', b"{}"]
    events = b"".join(sse.named_event(f"kind.{place}", one) for place, one in enumerate(data))
    assert list(sse.parts_of(events)) == [(b"kind.0", data[0]), (b"kind.1", data[1])]
    assert list(sse.parts_of(sse.DONE)) == list(sse.parts_of(sse.KEEP_ALIVE)) == []
