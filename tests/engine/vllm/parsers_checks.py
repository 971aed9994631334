"""vLLM's parsers read the same in a whole text as Tokka does in its pieces. Run by test_parsers.py."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.reading.read import split
from tests.engine.reading.tool_texts import BAD, GOOD, TOOLS, Said
from tests.engine.tokenizer import byte_tokenizer
from tokka.core import (
    ChatPrompt,
    ChoiceDone,
    Constraint,
    GenerateRequest,
    ReasoningDelta,
    Sampling,
    TextDelta,
    ToolCallDelta,
)
from tokka.engine.reading.forms import FORMS, UNKNOWN
from tokka.engine.reading.readers import Readers
from tokka.engine.vllm.parsers import Parsers
from tokka.engine.vllm.start.parser_names import check_parser_names
from tokka.errors import ConfigurationError, InvalidRequest

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

MARKS = [
    *sorted({mark for form in FORMS.values() for mark in form.marks}),
    *("<think>", "</think>", "[THINK]", "[/THINK]", "[ARGS]", "<｜tool▁sep｜>", "<|python_end|>"),
    *("<seed:think>", "</seed:think>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>"),
]
TOOL_TEMPLATE = "{{ tools }}{% for message in messages %}{{ message.content }}{% endfor %}"


@cache
def tokenizer(*, marked: bool = True) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(byte_tokenizer()["tokenizer"])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    if marked:
        made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


@cache
def parsers(calls: str | None, thoughts: str | None = None) -> Parsers:
    return Parsers(tokenizer(), TOOL_TEMPLATE, calls, thoughts)


def request(tools: Any = TOOLS, constraint: Constraint | None = None) -> GenerateRequest:
    prompt = ChatPrompt(({"role": "user", "content": "Hi"},), tools)
    return GenerateRequest("r", "m", (prompt,), Sampling(constraint=constraint))


def read(parser: Parsers, text: str, cuts: list[int], prompt: str = "Hi", tools: Any = TOOLS) -> dict[str, Any]:
    """Read a text in pieces; return its tool calls, content and reasoning, and how it finished."""
    ids = tokenizer()(prompt)["input_ids"]
    reading = parser.reading(request(tools), ids)
    assert reading is not None
    readers = Readers(reading)
    # Reasoning tokens are counted at the end, so all tokens may come with the first piece.
    tokens = [tokenizer()(text)["input_ids"], *([] for _ in cuts)]
    deltas = [TextDelta(0, piece, own) for piece, own in zip(split(text, cuts), tokens, strict=True)]
    events = [event for delta in deltas for event in readers.read(delta)]
    events += readers.read(ChoiceDone(0, "stop"))
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, ToolCallDelta):
            if event.name is not None:
                calls.append([event.name, ""])
            calls[event.call_index][1] += event.arguments
    done = events[-1]
    assert isinstance(done, ChoiceDone)
    return {
        "calls": [(name, json.loads(arguments)) for name, arguments in calls],
        "content": "".join(event.text for event in events if isinstance(event, TextDelta)),
        "thoughts": "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        "finish": done.finish_reason,
        "reasoning_tokens": readers.reasoning_tokens,
    }


@pytest.mark.parametrize("said", [said for said in [*GOOD, *BAD] if not said.odd], ids=lambda said: said.text[:30])
def test_library_and_reader_find_the_same_calls(said: Said) -> None:
    reading = parsers(said.parser).reading(request(), [])
    assert reading is not None
    assert reading.whole is not None
    calls, content = reading.whole(said.text)
    found = [(name, json.loads(arguments)) for name, arguments in calls]
    assert tuple(found) == said.calls
    if found:
        assert content.strip() == said.content.strip()


@pytest.mark.parametrize("said", [*GOOD, *BAD], ids=lambda said: said.text[:30])
def test_answer_has_the_expected_calls_with_the_librarys_check(said: Said) -> None:
    got = read(parsers(said.parser), said.text, [])
    assert (tuple(got["calls"]), got["content"]) == (said.calls, said.content)


@settings(max_examples=300)
@given(st.sampled_from([*GOOD, *BAD]), st.lists(st.integers(0, 300), max_size=8))
def test_every_split_gives_the_expected_calls_for_every_parser(said: Said, cuts: list[int]) -> None:
    got = read(parsers(said.parser), said.text, cuts)
    assert (tuple(got["calls"]), got["content"]) == (said.calls, said.content)
    assert got["finish"] == ("tool_calls" if said.calls else "stop")


THINKERS = [
    "deepseek_r1",
    "qwen3",
    "deepseek_v3",
    "seed_oss",
    "mistral",
    "granite",
    "glm45",
    "kimi_k2",
    "nemotron_v3",
]


@settings(max_examples=100)
@given(st.sampled_from(THINKERS), st.lists(st.integers(0, 80), max_size=6), st.booleans())
def test_thoughts_come_before_calls_for_every_split(name: str, cuts: list[int], begun: bool) -> None:
    parser = parsers("hermes", name)
    marks = parser.thoughts
    assert marks is not None
    text = f'Hm 🦌.{marks.end}Ok.<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'
    got = read(parser, text if begun else marks.start + text, cuts, prompt=f"Hi{marks.start}\n" if begun else "Hi")
    assert got["thoughts"] == "Hm 🦌."
    assert (got["calls"], got["content"], got["finish"]) == ([("now", {})], "Ok.", "tool_calls")
    assert got["reasoning_tokens"] == len("Hm 🦌.".encode())


def test_a_prompt_that_has_ended_the_thoughts_begins_the_answer() -> None:
    got = read(parsers(None, "qwen3"), "Yes.", [1, 2], prompt="<think>\n\n</think>\n\n", tools=None)
    assert (got["thoughts"], got["content"], got["reasoning_tokens"]) == ("", "Yes.", 0)


def test_a_constraint_waits_only_for_thoughts_that_are_certain() -> None:
    def ended(parser: Parsers, prompt: str) -> bool | None:
        return parser.reasoning_ended(request(None), tokenizer()(prompt)["input_ids"])

    assert ended(parsers(None), "Hi") is None
    assert ended(parsers(None, "deepseek_r1"), "Hi") is False
    assert ended(parsers(None, "deepseek_r1"), "Hi<think></think>\n") is True
    # These models may skip the reasoning.
    assert ended(parsers(None, "mistral"), "Hi") is True
    assert ended(parsers(None, "mistral"), "Hi[THINK]") is False


OPTIONAL = Constraint("calls", "{}", "tools", is_optional=True)


def test_optional_constraint_applies_to_hermes_calls_only() -> None:
    asked = request(constraint=OPTIONAL)
    assert parsers("hermes").constrained(asked) is asked
    for name in ("mistral", "openai"):
        assert parsers(name).constrained(asked) == request()
    # Without a constraint, gpt-oss writes its own format.
    plan = parsers("openai").reading(parsers("openai").constrained(asked), [])
    assert plan is not None
    assert plan.is_harmony


def test_response_format_beside_optional_calls_needs_hermes() -> None:
    asked = request(constraint=Constraint("calls", "{}", "response_format"))
    assert parsers("hermes").constrained(asked) is asked
    with pytest.raises(InvalidRequest, match="With this model response_format cannot be combined") as caught:
        parsers("mistral").constrained(asked)
    assert caught.value.param == "response_format"


def test_constraint_of_another_kind_applies_to_any_model() -> None:
    for constraint in (None, Constraint("json", "{}", "tools"), Constraint("regex", "a", "structured_outputs.regex")):
        asked = request(constraint=constraint)
        assert parsers("mistral").constrained(asked) is asked


def test_thoughts_that_never_end_are_thoughts() -> None:
    got = read(parsers(None, "deepseek_r1"), "Hm", [1], tools=None)
    assert (got["thoughts"], got["content"], got["reasoning_tokens"]) == ("Hm", "", 2)


def test_unknown_parser_is_refused_with_the_available_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"--tool-call-parser nope: .*hermes.*mistral"):
        check_parser_names("nope", None)
    with pytest.raises(ConfigurationError, match=r"--reasoning-parser nope: .*deepseek_r1.*qwen3"):
        check_parser_names(None, "nope")
    check_parser_names("hermes", "qwen3")


def test_a_parser_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--reasoning-parser minimax_m3 does not fit this model"):
        parsers(None, "minimax_m3")
    with pytest.raises(ConfigurationError, match="--tool-call-parser llama3_json does not fit this model"):
        Parsers(tokenizer(marked=False), TOOL_TEMPLATE, "llama3_json", None)
    with pytest.raises(ConfigurationError, match="does not support tools"):
        Parsers(tokenizer(), "{{ messages }}", "mistral", None)


def test_without_tools_and_thoughts_nothing_is_read() -> None:
    assert parsers("hermes").reading(request(None), []) is None


def test_every_parser_of_the_library_that_fits_reads_a_text_as_text() -> None:
    from vllm.tool_parsers import ToolParserManager

    read_by = 0
    for name in ToolParserManager.list_registered():
        try:
            parser = Parsers(tokenizer(), TOOL_TEMPLATE, name, None)
        except ConfigurationError:
            continue
        read_by += 1
        assert read(parser, "Just text, ä🦌.", [3, 5])["content"] == "Just text, ä🦌.", name
    assert read_by > 20


def test_marks_that_are_special_tokens_are_part_of_the_text() -> None:
    reading = parsers("mistral").reading(request(), [])
    assert reading is not None
    assert parsers("mistral").shows_special(reading)
    assert FORMS.get("granite", UNKNOWN) is UNKNOWN
