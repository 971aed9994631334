"""Requests: valid values reach the engine unchanged. All others are refused, and never corrected."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tests.protocol.bodies import CHAT, COMPLETION, chat, completion
from tokka.core import ChatPrompt, GenerateRequest, TextPrompt, TokensPrompt
from tokka.prompt_size import text_chars
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from tokka.protocol.messages import RESERVED_TEMPLATE_KWARGS
from tokka.protocol.models import DetokenizeRequest, TokenizeRequest

MAX_INT64 = 2**63 - 1
ENDPOINTS = [pytest.param(ChatRequest, CHAT, id="chat"), pytest.param(CompletionRequest, COMPLETION, id="completion")]
BASES: dict[type[BaseModel], dict[str, Any]] = {ChatRequest: CHAT, CompletionRequest: COMPLETION}


def anonymous(request: GenerateRequest) -> GenerateRequest:
    return replace(request, id="")


def refused(model: type[BaseModel], body: str) -> bool:
    try:
        model.model_validate_json(body)
    except ValidationError:
        return True
    return False


# -- valid requests reach the engine unchanged ------------------------------------------------------------------

unit = st.floats(0, 1) | st.sampled_from([0, 1])
penalties = st.floats(-2, 2)
token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)
strings = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable())
# Fields that reach the engine with the same name and value.
PLAIN = {
    "temperature": st.floats(0, 2) | st.integers(0, 2),
    "top_p": unit,
    "top_k": st.integers(-1, 2**31 - 1),
    "min_p": unit,
    "presence_penalty": penalties,
    "frequency_penalty": penalties,
    "repetition_penalty": st.floats(0.01, 10),
    "seed": st.integers(-MAX_INT64 - 1, MAX_INT64),
    "n": st.integers(1, 128),
    "min_tokens": st.integers(0, MAX_INT64),
    "max_tokens": st.integers(1, MAX_INT64),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
}
LISTS = {
    "stop": st.lists(strings, max_size=16),
    "stop_token_ids": token_ids,
    "bad_words": st.lists(strings, max_size=4),
    "allowed_token_ids": token_ids,
}


@given(st.fixed_dictionaries({}, optional=PLAIN))
def test_plain_fields_reach_the_engine_unchanged(fields: dict[str, Any]) -> None:
    for request in (chat(**fields), completion(**fields)):
        sampling = request.to_core().sampling
        assert {name: getattr(sampling, name) for name in fields} == fields


@given(st.fixed_dictionaries({}, optional=LISTS))
def test_lists_reach_the_engine_in_their_order(fields: dict[str, Any]) -> None:
    for request in (chat(**fields), completion(**fields)):
        sampling = request.to_core().sampling
        assert {name: list(getattr(sampling, name)) for name in fields} == fields


@given(st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100) | st.integers(-100, 100), max_size=5))
def test_logit_bias_reaches_the_engine_by_token_id(bias: dict[int, float]) -> None:
    fields = {"logit_bias": {str(token): value for token, value in bias.items()}}
    assert chat(**fields).to_core().sampling.logit_bias == bias
    assert completion(**fields).to_core().sampling.logit_bias == bias


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "truncate_prompt_tokens": st.integers(1, MAX_INT64),
            "priority": st.integers(-(2**31), 2**31 - 1),
            "cache_salt": st.text("aZ9_.~+/=-", min_size=1, max_size=128),
        },
    )
)
def test_scheduling_fields_reach_the_engine(fields: dict[str, Any]) -> None:
    for request in (chat(**fields), completion(**fields)):
        core = request.to_core()
        assert {name: getattr(core, name) for name in fields} == fields


@given(st.floats(0.001, 86400))
def test_timeout_reaches_the_engine(timeout: float) -> None:
    assert chat(timeout=timeout).to_core().timeout_s == timeout


@pytest.mark.parametrize(("model", "base"), ENDPOINTS)
def test_null_means_the_same_as_leaving_a_field_out(model: Any, base: dict[str, Any]) -> None:
    optional = [name for name, field in model.model_fields.items() if not field.is_required()]
    assert len(optional) > 30
    nulls = dict.fromkeys(optional)
    plain = model.model_validate_json(json.dumps(base)).to_core()
    assert anonymous(model.model_validate_json(json.dumps({**base, **nulls})).to_core()) == anonymous(plain)


@pytest.mark.parametrize(("model", "base"), ENDPOINTS)
def test_required_fields_may_not_be_null(model: Any, base: dict[str, Any]) -> None:
    # Except the prompt: OpenAI's API treats null as the beginning of a document.
    for name in base.keys() - {"prompt"}:
        assert refused(model, json.dumps({**base, name: None}))


@pytest.mark.parametrize(("model", "base"), ENDPOINTS)
def test_required_fields_may_not_be_missing(model: Any, base: dict[str, Any]) -> None:
    for name in base:
        assert refused(model, json.dumps({key: value for key, value in base.items() if key != name}))


def test_each_request_has_its_own_id() -> None:
    assert chat().to_core().id != chat().to_core().id
    assert chat().to_core().id.startswith("chatcmpl-")
    assert completion().to_core().id.startswith("cmpl-")


# -- numbers are strict -----------------------------------------------------------------------------------------

# Field: (a value just below the allowed range, a value just above it).
INTEGERS = {
    "max_tokens": (-1, 2**63),
    "min_tokens": (-1, 2**63),
    "truncate_prompt_tokens": (0, 2**63),
    "n": (0, 129),
    "prompt_logprobs": (-1, 21),
    "thinking_token_budget": (-2, 2**63),
    "top_k": (-2, 2**31),
    "seed": (-(2**63) - 1, 2**63),
    "priority": (-(2**31) - 1, 2**31),
}
FLOATS = {
    "temperature": (-0.001, 2.001),
    "top_p": (-0.001, 1.001),
    "min_p": (-0.001, 1.001),
    "presence_penalty": (-2.001, 2.001),
    "frequency_penalty": (-2.001, 2.001),
    "repetition_penalty": (0, 10.001),
    "timeout": (0, 86400.5),
}
CHAT_INTEGERS = {"max_tokens": (0, 2**63), "max_completion_tokens": (0, 2**63), "top_logprobs": (-1, 21)}
COMPLETION_INTEGERS = {"best_of": (0, 21), "logprobs": (-1, 6)}
INTEGER_FIELDS = [
    *((ChatRequest, name, bounds) for name, bounds in {**INTEGERS, **CHAT_INTEGERS}.items()),
    *((CompletionRequest, name, bounds) for name, bounds in {**INTEGERS, **COMPLETION_INTEGERS}.items()),
]
FLOAT_FIELDS = [(model, name, bounds) for model in BASES for name, bounds in FLOATS.items()]
NOT_A_NUMBER = ['"5"', '"1"', '""', "true", "false", "[]", "[1]", "{}", "NaN", "Infinity", "-Infinity", "1e400"]


def with_field(model: type[BaseModel], name: str, raw: str) -> str:
    """Return a request with the field set to this JSON text."""
    needed = {"logprobs": True} if name == "top_logprobs" else {}
    body = json.dumps({**BASES[model], **needed})
    return f'{body[:-1]}, "{name}": {raw}}}'


@pytest.mark.parametrize("raw", [*NOT_A_NUMBER, "1.5", str(2**70), str(-(2**70)), "9" * 4300])
@pytest.mark.parametrize(("model", "name", "bounds"), INTEGER_FIELDS)
def test_integer_field_refuses_other_values(
    model: type[BaseModel], name: str, bounds: tuple[int, int], raw: str
) -> None:
    assert refused(model, with_field(model, name, raw))


@pytest.mark.parametrize("raw", [*NOT_A_NUMBER, str(2**70), str(-(2**70)), "1e308"])
@pytest.mark.parametrize(("model", "name", "bounds"), FLOAT_FIELDS)
def test_float_field_refuses_other_values(
    model: type[BaseModel], name: str, bounds: tuple[float, float], raw: str
) -> None:
    assert refused(model, with_field(model, name, raw))


@pytest.mark.parametrize(("model", "name", "bounds"), [*INTEGER_FIELDS, *FLOAT_FIELDS])
def test_one_step_beyond_a_bound_is_refused(model: type[BaseModel], name: str, bounds: tuple[float, float]) -> None:
    assert [refused(model, with_field(model, name, json.dumps(value))) for value in bounds] == [True, True]


@pytest.mark.parametrize(("model", "name", "bounds"), INTEGER_FIELDS)
def test_the_bounds_themselves_are_allowed(model: type[BaseModel], name: str, bounds: tuple[int, int]) -> None:
    below, above = bounds
    assert not refused(model, with_field(model, name, str(below + 1)))
    assert not refused(model, with_field(model, name, str(above - 1)))


def test_the_numeric_fields_under_test_are_all_there_are() -> None:
    for model, own in ((ChatRequest, CHAT_INTEGERS), (CompletionRequest, COMPLETION_INTEGERS)):
        numeric = {
            name
            for name, schema in model.model_json_schema()["properties"].items()
            if {"integer", "number"} & {branch.get("type") for branch in schema.get("anyOf", [schema])}
        }
        assert numeric == {*INTEGERS, *FLOATS, *own}


BOOLEANS = [
    "return_tokens_as_token_ids",
    "stream",
    "echo",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "return_token_ids",
]


@pytest.mark.parametrize("raw", ['"true"', "1", "0", "[]", "{}", '"yes"'])
@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("model", list(BASES))
def test_boolean_field_refuses_other_values(model: type[BaseModel], name: str, raw: str) -> None:
    assert refused(model, with_field(model, name, raw))


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("logit_bias", '{"1": NaN}'),
        ("logit_bias", '{"1": Infinity}'),
        ("logit_bias", '{"1": 100.5}'),
        ("logit_bias", '{"1": "5"}'),
        ("logit_bias", '{"1": true}'),
        ("logit_bias", '{"1": null}'),
        ("logit_bias", '{"a": 1}'),
        ("logit_bias", '{"-1": 1}'),
        ("logit_bias", '{"1.5": 1}'),
        ("logit_bias", '{"": 1}'),
        ("logit_bias", '{"٣": 1}'),
        ("logit_bias", '{"1\\n": 1}'),
        ("logit_bias", "[[1, 2]]"),
        ("stop_token_ids", "[-1]"),
        ("stop_token_ids", "[true]"),
        ("stop_token_ids", "[1.5]"),
        ("stop_token_ids", '["1"]'),
        ("stop_token_ids", "[2147483648]"),
        ("stop_token_ids", "5"),
        ("allowed_token_ids", "[]"),
        ("allowed_token_ids", "[-1]"),
        ("bad_words", '[""]'),
        ("bad_words", '"x"'),
        ("bad_words", "[null]"),
        ("stop", '""'),
        ("stop", '[""]'),
        ("stop", "[1]"),
        ("stop", "[null]"),
        ("stop", "1"),
        ("stop", "true"),
        ("stop", "{}"),
        ("stop", json.dumps(["x"] * 17)),
        ("stop", json.dumps("x" * 257)),
        ("stop", '[["x"]]'),
        ("cache_salt", '""'),
        ("cache_salt", '"a b"'),
        ("cache_salt", '"a\\n"'),
        ("cache_salt", "1"),
        ("request_id", '""'),
        ("request_id", '"a b"'),
        ("request_id", '"a\\n"'),
        ("request_id", json.dumps("x" * 129)),
        ("truncation_side", '"middle"'),
        ("truncate_prompt_tokens", "-2"),
        ("user", "1"),
        ("user", json.dumps("x" * 1025)),
        ("model", '""'),
        ("model", "1"),
        ("structured_outputs", "{}"),
        ("stream_options", '{"include_usage": true}'),
    ],
)
@pytest.mark.parametrize("model", list(BASES))
def test_a_value_of_the_wrong_form_is_refused(model: type[BaseModel], name: str, raw: str) -> None:
    assert refused(model, with_field(model, name, raw))


# -- unknown fields are refused ---------------------------------------------------------------------------------

ASSISTANT = {"role": "assistant", "content": "a"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"unknown": 1},
        {"Temperature": 1},
        {"stream": True, "stream_options": {"unknown": True}},
        {"response_format": {"type": "text", "unknown": 1}},
        {"prediction": {"type": "content", "content": "a", "unknown": 1}},
    ],
)
def test_an_unknown_field_is_refused_at_every_depth_of_a_chat(fields: dict[str, Any]) -> None:
    assert refused(ChatRequest, json.dumps({**CHAT, **fields}))


@pytest.mark.parametrize("name", ["messages", "max_completion_tokens", "top_logprobs", "tools", "metadata", "unknown"])
def test_a_chat_field_is_unknown_to_completions(name: str) -> None:
    assert refused(CompletionRequest, json.dumps({**COMPLETION, name: None}))


@pytest.mark.parametrize("name", ["prompt", "best_of", "suffix"])
def test_a_completion_field_is_unknown_to_chats(name: str) -> None:
    assert refused(ChatRequest, json.dumps({**CHAT, name: None}))


# -- rules between fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 3},
        {"top_logprobs": 1, "logprobs": False},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": True, "messages": [ASSISTANT]},
        {"stream_options": {"include_usage": True}},
        {"stream": False, "stream_options": {"include_usage": False}},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "other", "content": "a"}]},
        {"messages": [{"content": "a"}]},
        {"messages": [{"role": "user", "content": "a", "name": "bad name"}]},
        {"metadata": {"a": 1}},
        {"metadata": {str(number): "x" for number in range(17)}},
        {"service_tier": "gold"},
        {"modalities": ["audio"]},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"tools": [], "tool_choice": "required"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"functions": []},
        {"reasoning_effort": "lowest"},
        {"documents": [{"text": 1}]},
        {"documents": ["text"]},
        {"documents": [{"text": "a"}] * 257},
        {"documents": [{str(number): "a" for number in range(17)}]},
        {"include_reasoning": "no"},
        {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "low"}},
    ],
)
def test_a_chat_that_makes_no_sense_here_is_refused(fields: dict[str, Any]) -> None:
    assert refused(ChatRequest, json.dumps({**CHAT, **fields}))


def test_documents_are_a_variable_of_the_template() -> None:
    asked = chat(documents=[{"text": "abc"}], chat_template_kwargs={"x": 1})
    assert asked.prompt().template_kwargs == {"x": 1, "documents": [{"text": "abc"}]}
    assert text_chars(asked.prompt()) - text_chars(chat().prompt()) == 3


def test_completion_takes_a_response_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    own = completion(response_format=form).to_core().sampling.constraint
    assert own == chat(response_format=form).to_core().sampling.constraint
    assert own is not None
    assert completion(response_format={"type": "text"}).to_core().sampling.constraint is None


def test_truncation_to_the_context_accepts_either_side() -> None:
    for request in (chat, completion):
        core = request(truncate_prompt_tokens=-1, truncation_side="right").to_core()
        assert (core.truncate_prompt_tokens, core.truncation_side) == (-1, "right")


@pytest.mark.parametrize("name", sorted(RESERVED_TEMPLATE_KWARGS))
def test_template_variables_may_not_replace_the_template_s_own(name: str) -> None:
    assert refused(ChatRequest, json.dumps({**CHAT, "chat_template_kwargs": {name: "x"}}))


@pytest.mark.parametrize(
    "raw",
    [
        '{"x": NaN}',
        '{"x": [Infinity]}',
        '{"1x": 1}',
        '{"": 1}',
        '{"x": ' + "[" * 17 + "]" * 17 + "}",
        json.dumps({"x": [0] * 1024}),
        json.dumps({"x": {"a" * 2049: "b" * 2048}}),
    ],
)
def test_template_variables_are_finite_and_of_bounded_size(raw: str) -> None:
    assert refused(ChatRequest, with_field(ChatRequest, "chat_template_kwargs", raw))


@pytest.mark.parametrize("value", [True, 1, 1.5, "x", None, {"a": [{"b": 1}, []]}, ["x", 1.5, None]])
def test_template_variables_reach_the_template_as_they_are(value: Any) -> None:
    prompt = chat(chat_template_kwargs={"x": value}).prompt()
    assert prompt.template_kwargs == {"x": value}
    assert type(prompt.template_kwargs["x"]) is type(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "n": 2},
        {"best_of": 2, "stream": True},
        {"suffix": "x"},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "xml"}},
        {"prompt": ["x"] * 1025},
        {"prompt": ["x"] * 513, "n": 2},
        {"prompt": ["x"] * 513, "best_of": 2},
    ],
)
def test_a_completion_that_makes_no_sense_here_is_refused(fields: dict[str, Any]) -> None:
    assert refused(CompletionRequest, json.dumps({**COMPLETION, **fields}))


# -- prompts and messages ---------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_a_text_prompt_reaches_the_engine_as_it_is(text: str) -> None:
    assert completion(prompt=text).to_core().prompts == (TextPrompt(text),)


@given(st.lists(st.text("aä🦌", min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_list_of_texts_is_as_many_prompts(texts: list[str]) -> None:
    assert completion(prompt=texts).to_core().prompts == tuple(map(TextPrompt, texts))


def ids_of(request: CompletionRequest) -> list[list[int]]:
    return [list(prompt.token_ids) for prompt in request.to_core().prompts if isinstance(prompt, TokensPrompt)]


@given(token_ids)
def test_a_list_of_token_ids_is_one_prompt(ids: list[int]) -> None:
    assert ids_of(completion(prompt=ids)) == [ids]


@given(st.lists(token_ids, min_size=1, max_size=3))
def test_list_of_token_lists_is_several_prompts(lists: list[list[int]]) -> None:
    assert ids_of(completion(prompt=lists)) == lists


@pytest.mark.parametrize(
    "prompt",
    [
        *([], [[]], ["a", 1], [1, "a"], [[1], "a"], ["a", [1]], [[1], 2], [1, [2]], [True], [1, True]),
        *([-1], [2**31], [1.5], [None], 5, True, {}, [{}], [[["a"]]], [["a"]], [[1], []], [[True]]),
    ],
)
def test_a_prompt_of_another_form_is_refused(prompt: Any) -> None:
    assert refused(CompletionRequest, json.dumps({**COMPLETION, "prompt": prompt}))


def test_a_completion_without_a_limit_gets_openai_s_default() -> None:
    sampling = completion().to_core().sampling
    assert (sampling.max_tokens, sampling.default_max_tokens) == (None, DEFAULT_MAX_TOKENS)
    assert DEFAULT_MAX_TOKENS == 16


@pytest.mark.parametrize("prompt", [None, "", [""]])
def test_no_prompt_is_the_beginning_of_a_document(prompt: Any) -> None:
    assert completion(prompt=prompt).to_core().prompts == (TextPrompt(""),)


def test_a_completion_may_ask_for_nothing_but_the_prompt() -> None:
    assert completion(max_tokens=0).to_core().sampling.max_tokens == 0


def test_a_chat_without_a_limit_has_none() -> None:
    assert chat().to_core().sampling.max_tokens is None


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    core = chat(max_tokens=5, max_completion_tokens=7).to_core()
    assert (core.sampling.max_tokens, core.limit_param) == (7, "max_completion_tokens")


def test_the_limit_is_named_as_the_client_wrote_it() -> None:
    assert chat(max_tokens=5).to_core().limit_param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 5}, 5),
    ],
)
def test_chat_logprobs_are_a_switch_and_a_number(fields: dict[str, Any], expected: int | None) -> None:
    assert chat(**fields).to_core().sampling.logprobs == expected


def test_best_of_generates_more_than_it_returns_and_scores_them() -> None:
    sampling = completion(best_of=3).to_core().sampling
    assert (sampling.n, sampling.logprobs) == (3, 0)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert chat(stop="END").to_core().sampling.stop == ("END",)


def test_text_parts_of_a_message_are_joined_by_line_ends() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).prompt().messages == (
        {"role": "user", "content": "a\nb"},
    )


def test_tool_arguments_reach_the_template_as_an_object() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    (message,) = chat(messages=[{"role": "assistant", "tool_calls": [call]}]).prompt().messages
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_tool_arguments_that_are_no_json_reach_the_template_as_text() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{x"}}
    (message,) = chat(messages=[{"role": "assistant", "tool_calls": [call]}]).prompt().messages
    assert message["tool_calls"][0]["function"]["arguments"] == "{x"


def test_the_name_a_result_comes_with_is_not_shown_to_the_template() -> None:
    result = {"role": "tool", "content": "3", "tool_call_id": "c", "name": "f"}
    messages = chat(messages=[{"role": "assistant", "tool_calls": [CALL]}, result]).prompt().messages
    assert messages[1] == {"role": "tool", "content": "3", "tool_call_id": "c"}


def test_a_refusal_stands_in_for_the_content_it_has_not() -> None:
    (message,) = chat(messages=[{"role": "assistant", "refusal": "No."}]).prompt().messages
    assert message["content"] == "No."


def test_an_answer_sent_back_as_history_is_accepted() -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": "Hei", "refusal": None, "annotations": []}
    answer["tool_calls"] = None
    (message,) = chat(messages=[answer]).prompt().messages
    assert message == {"role": "assistant", "content": "Hei"}


@pytest.mark.parametrize("effort", [None, "none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_how_much_to_think_goes_with_the_prompt(effort: str | None) -> None:
    assert chat(reasoning_effort=effort).prompt().reasoning_effort == effort


def test_continuing_the_last_message_asks_for_no_new_one() -> None:
    prompt = chat(messages=[{"role": "assistant", "content": "a"}], continue_final_message=True).prompt()
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (False, True)


# -- tokenize and detokenize ------------------------------------------------------------------------------------


def test_tokenize_takes_a_text() -> None:
    assert TokenizeRequest.model_validate_json('{"prompt": "Hei"}').parsed().prompt == TextPrompt("Hei")


def test_tokenize_counts_a_chat_as_the_chat_endpoint_does() -> None:
    body = json.dumps({"messages": CHAT["messages"]})
    assert TokenizeRequest.model_validate_json(body).parsed().prompt == chat().prompt()
    assert isinstance(chat().prompt(), ChatPrompt)


@pytest.mark.parametrize(
    "body",
    [
        *('{"messages": []}', '{"prompt": "a", "unknown": 1}', '{"prompt": "a", "model": ""}', '{"prompt": ["a"]}'),
        '{"messages": [{"role": "user", "content": "a"}], "continue_final_message": true}',
        '{"messages": [{"role": "assistant", "content": "a"}], "continue_final_message": true, '
        '"add_generation_prompt": true}',
    ],
)
def test_tokenize_refuses_the_same_bodies_as_the_chat_endpoint(body: str) -> None:
    assert refused(TokenizeRequest, body)


@pytest.mark.parametrize("body", ["{}", '{"tokens": null}', '{"tokens": [-1]}', '{"tokens": ["1"]}', '{"tokens": 1}'])
def test_detokenize_takes_only_a_list_of_ids(body: str) -> None:
    assert refused(DetokenizeRequest, body)


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest])
def test_empty_stream_options_ask_for_nothing(model: type[BaseModel]) -> None:
    assert not refused(model, with_field(model, "stream_options", "{}"))
