"""Tool conversations, rendered by chat templates with the rules of the real ones (chat_templates/)."""

from __future__ import annotations

import asyncio
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tokenizer import EOS, fast_tokenizer
from tokka.core import ChatPrompt, TextPrompt, Tools
from tokka.engine.templates.rules import TemplateRules
from tokka.engine.vllm.render import Renderer
from tokka.errors import EngineDied, InvalidRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.common import new_id

FOLDER = Path(__file__).parents[1] / "chat_templates"
RULES = {
    "deepseek_r1": TemplateRules(knows_tools=False, late_system=False),
    "deepseek_v3": TemplateRules(text_arguments=True, late_system=False),
    "gemma_2": TemplateRules(knows_tools=False, takes_system=False, late_system=False),
    "gpt_oss": TemplateRules(single_calls=True),
    "llama_2": TemplateRules(knows_tools=False, late_system=False),
    "llama_3_1": TemplateRules(single_calls=True),
    "mistral_nemo": TemplateRules(short_ids=True, late_system=False, user_after_tool=False),
    "mistral_v0_2": TemplateRules(knows_tools=False, takes_system=False, late_system=False),
    "nemotron_v2": TemplateRules(late_system=False),
    "phi_4_mini": TemplateRules(late_system=False),
    "qwen_2_5": TemplateRules(),
    "qwen_3": TemplateRules(),
}
NAMES = ("get_weather", "get_time")
CITIES = ("Oulu", "Inari")
RESULTS = ("minus-seven", "half-past-nine")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in NAMES
]
USER = {"role": "user", "content": "How is it there?"}
OUR_IDS = (new_id("call_"), new_id("call_"))


@cache
def renderer(name: str) -> Renderer:
    template = (FOLDER / f"{name}.jinja").read_text() if "{" not in name else name
    return Renderer(fast_tokenizer(), template, max_model_len=100_000, vocab_size=EOS + 1)


async def rendered(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    prompt = ChatRequest.model_validate({"model": "m", "messages": messages, "tools": tools}).prompt()
    return renderer(name).decode(await renderer(name).token_ids(prompt, "tenant"))


def called(ids: tuple[str, ...]) -> dict[str, Any]:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps({"city": city})}}
        for call_id, name, city in zip(ids, NAMES, CITIES, strict=False)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def results(ids: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": call_id, "content": result}
        for call_id, result in zip(ids, RESULTS, strict=False)
    ]


@pytest.mark.parametrize("name", RULES)
def test_renderer_finds_the_rules_of_each_template(name: str) -> None:
    chat = renderer(name)._chat
    assert chat is not None
    assert chat._rules == RULES[name]


def test_every_template_here_is_tried() -> None:
    assert sorted(RULES) == sorted(path.stem for path in FOLDER.iterdir())


@pytest.mark.parametrize("ids", [OUR_IDS[:1], OUR_IDS, ("a", "my-own-id"), ("0" * 200, "0" * 201)], ids=len)
@pytest.mark.parametrize(
    ("name", "after"),
    [
        *((name, []) for name in RULES),
        *((name, [USER]) for name in RULES),
        *((name, [{"role": "assistant", "content": "Cold."}, {"role": "user", "content": "Why?"}]) for name in RULES),
    ],
)
async def test_a_tool_loop_goes_on(name: str, ids: tuple[str, ...], after: list[dict[str, Any]]) -> None:
    text = await rendered(name, [USER, called(ids), *results(ids), *after], TOOLS)
    places = []
    for function, city, result in zip(NAMES[: len(ids)], CITIES, RESULTS, strict=False):
        (call,) = re.finditer(rf'\{{"city": ?"{city}"\}}', text)
        assert function in text[: call.start()]
        assert text.count(result) == 1
        assert call.end() < text.index(result)
        places.append(text.index(result))
    assert places == sorted(places)
    assert all(message["content"] in text[places[-1] :] for message in after)


@pytest.mark.parametrize("name", RULES)
async def test_late_system_message_keeps_its_place(name: str) -> None:
    note = {"role": "system", "content": "Be brief."}
    turns = [USER, {"role": "assistant", "content": "Cold."}, note, {"role": "user", "content": "And Inari?"}]
    text = await rendered(name, turns)
    places = [text.index(message["content"]) for message in turns]
    assert places == sorted(places)
    # The next turn begins with the same text, so the prefix cache has it.
    more = await rendered(name, [*turns, {"role": "assistant", "content": "Colder."}, note, USER])
    end = places[-1] + len("And Inari?")
    assert more[:end] == text[:end]


@pytest.mark.parametrize("name", [name for name, rules in RULES.items() if rules.takes_system])
async def test_two_leading_system_messages_are_rendered(name: str) -> None:
    text = await rendered(
        name, [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}, USER]
    )
    places = [text.index(words) for words in ("Be brief.", "Be kind.", USER["content"])]
    assert places == sorted(places)


@pytest.mark.parametrize("name", RULES)
async def test_system_message_behind_a_tool_result_is_kept(name: str) -> None:
    loop = [USER, called(OUR_IDS[:1]), *results(OUR_IDS[:1])]
    text = await rendered(name, [*loop, {"role": "system", "content": "Be brief."}], TOOLS)
    assert text.index(RESULTS[0]) < text.index("Be brief.")


@pytest.mark.parametrize("name", RULES)
async def test_second_call_is_rendered_after_the_first_result(name: str) -> None:
    first, second = OUR_IDS
    both = called(OUR_IDS)
    loop = [
        USER,
        {**both, "tool_calls": both["tool_calls"][:1]},
        *results((first,)),
        {**both, "tool_calls": both["tool_calls"][1:]},
        {"role": "tool", "tool_call_id": second, "content": RESULTS[1]},
    ]
    text = await rendered(name, loop, TOOLS)
    places = [text.index(part) for part in (f'"{CITIES[0]}"', RESULTS[0], f'"{CITIES[1]}"', RESULTS[1])]
    assert places == sorted(places)


@pytest.mark.parametrize("name", RULES)
async def test_calls_and_results_are_rendered_when_no_tools_are_given(name: str) -> None:
    text = await rendered(name, [USER, called(OUR_IDS), *results(OUR_IDS)])
    assert all(part in text for part in (*CITIES, *RESULTS))


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("mistral_nemo", [USER, called(OUR_IDS[:1])], "nine letters"),
        ("mistral_nemo", [USER, *results(OUR_IDS[:1])], "nine letters"),
        ("mistral_nemo", [USER, called(("123456789",)), *results(("123456789",)), USER], "alternate"),
        ("llama_3_1", [USER, called(OUR_IDS)], "one call"),
        ("gemma_2", [{"role": "system", "content": "Be brief."}, USER], "System role"),
        ("gemma_2", [USER, USER], "alternate"),
        ("llama_2", [USER, USER], "alternate"),
        ("mistral_v0_2", [{"role": "system", "content": "Be brief."}, USER], "alternate"),
        ("gpt_oss", [USER, *results(OUR_IDS[:1])], "no call"),
    ],
)
def test_templates_of_the_tests_refuse_the_same_messages_as_real_ones(
    name: str, messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(Exception, match=reason):
        fast_tokenizer().apply_chat_template(messages, chat_template=renderer(name).template, tokenize=False)


def test_arguments_that_are_an_object_cannot_be_joined_to_text() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"city": "Oulu"}}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(TypeError):
        fast_tokenizer().apply_chat_template(messages, chat_template=renderer("deepseek_v3").template, tokenize=False)


# -- ids


async def test_ids_are_made_short_alike_for_calls_and_results() -> None:
    text = await rendered("mistral_nemo", [USER, called(OUR_IDS), *results(OUR_IDS)], TOOLS)
    of_calls, of_results = re.findall(r'"id": "([^"]+)"', text), re.findall(r'"call_id": "([^"]+)"', text)
    assert of_calls == of_results
    assert len(set(of_calls)) == 2
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in of_calls)
    again = await rendered("mistral_nemo", [USER, called(OUR_IDS), *results(OUR_IDS)], TOOLS)
    assert again == text


async def test_an_id_that_is_short_already_stays() -> None:
    ids = ("AbCdEf123", "a-c.e_123")
    text = await rendered("mistral_nemo", [USER, called(ids), *results(ids)], TOOLS)
    assert text.count('"AbCdEf123"') == 2
    assert ids[1] not in text


# -- results of several calls, for templates with one call per message


async def test_a_result_is_shown_as_that_of_its_own_call() -> None:
    text = await rendered("gpt_oss", [USER, called(OUR_IDS), *reversed(results(OUR_IDS))], TOOLS)
    for function, result in zip(NAMES, RESULTS, strict=True):
        assert f'<|start|>functions.{function} to=assistant<|channel|>commentary<|message|>"{result}"' in text


# -- templates without tools


async def test_user_message_has_the_tools_without_a_system_role() -> None:
    text = await rendered("gemma_2", [USER], TOOLS)
    assert text.startswith("<end><start_of_turn>user\nYou can call functions.")
    assert text.index('"get_time"') < text.index(USER["content"])


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", ["gemma_2", "mistral_v0_2"])
async def test_a_system_message_of_the_clients_own_is_refused_there(name: str, tools: Any) -> None:
    with pytest.raises(InvalidRequest, match="chat template does not take these messages"):
        await rendered(name, [{"role": "system", "content": "Be brief."}, USER], tools)


async def test_system_message_is_followed_by_the_tools() -> None:
    text = await rendered("llama_2", [{"role": "system", "content": "Be brief."}, USER], TOOLS)
    assert text.index("Be brief.") < text.index('"get_time"') < text.index("<</SYS>>") < text.index(USER["content"])


async def test_user_message_has_the_tools_when_system_messages_are_dropped() -> None:
    deaf = "{% for message in messages if message.role != 'system' %}{{ message.content }}{% endfor %}"
    assert '"get_time"' in await rendered(deaf, [USER], TOOLS)


async def test_turns_that_the_client_repeats_are_its_own() -> None:
    with pytest.raises(InvalidRequest, match="alternate"):
        await rendered("gemma_2", [USER, USER], TOOLS)


# -- arguments


@pytest.mark.parametrize("name", ["gemma_2", "qwen_2_5", "deepseek_v3", "mistral_nemo"])
@pytest.mark.parametrize("depth", [200, 300, 600, 1000, 5000])
async def test_arguments_may_nest_deep(name: str, depth: int) -> None:
    arguments = '{"a":' * depth + "1" + "}" * depth
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages: list[dict[str, Any]] = [USER, {"role": "assistant", "tool_calls": [call]}]
    try:
        text = await rendered(name, messages)
    except InvalidRequest:
        # Too deep for Python's recursion: the request is refused and does not fail.
        assert depth == 1000
    else:
        assert text.count("a", text.index("f")) >= depth


async def test_arguments_that_python_would_show_are_shown_as_json() -> None:
    plain = (
        "{{ tools }}{% for message in messages %}{{ message.content }}"
        "{% for call in message.tool_calls or () %}{{ call.function.name }}{{ call.function.arguments }}{% endfor %}"
        "{% endfor %}"
    )
    assert 'get_weather{"city": "Oulu"}' in await rendered(plain, [USER, called(OUR_IDS)], TOOLS)


# -- several templates by name, as Hermes 3 has them


@pytest.mark.parametrize(("tools", "shown"), [(None, "plain:"), (TOOLS, "tools:")])
async def test_of_several_templates_the_one_that_fits_is_used(tools: Any, shown: str) -> None:
    tokenizer = fast_tokenizer()
    each = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.chat_template = {"default": "plain:" + each, "tool_use": "tools:{{ tools | tojson }}" + each}
    several = Renderer(tokenizer, None, max_model_len=100_000, vocab_size=EOS + 1)
    prompt = ChatRequest.model_validate({"model": "m", "messages": [USER], "tools": tools}).prompt()
    assert several.decode(await several.token_ids(prompt, "tenant")).startswith(shown)


async def test_documents_and_variables_reach_the_template() -> None:
    template = "{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}{{ x.y[0] }}{{ messages[0].content }}"
    asked = {
        "documents": [{"title": "a", "text": "b"}, {"title": "c", "text": "d"}],
        "chat_template_kwargs": {"x": {"y": ["z"]}},
    }
    prompt = ChatRequest.model_validate({"model": "m", "messages": [USER], **asked}).prompt()
    shown = renderer(template).decode(await renderer(template).token_ids(prompt, "tenant"))
    assert shown == f"[a: b][c: d]z{USER['content']}"


async def test_texts_on_their_way_are_refused_when_the_engine_is_closed() -> None:
    own = Renderer(fast_tokenizer(), None, max_model_len=100_000, vocab_size=EOS + 1)
    texts = [asyncio.create_task(own.token_ids(TextPrompt("word " * 5_000), "tenant")) for _ in range(6)]
    # Two of them reach a thread.
    for _ in range(5):
        await asyncio.sleep(0)
    own.close()
    results = await asyncio.gather(*texts, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Exception)]
    # The two that reached a thread are served.
    assert len(refused) == 4
    assert {type(error) for error in refused} == {EngineDied}
    with pytest.raises(EngineDied):
        await own.token_texts([1], "tenant")


async def test_short_text_is_rendered_without_a_thread() -> None:
    own = Renderer(fast_tokenizer(), None, max_model_len=100_000, vocab_size=EOS + 1)
    # A coroutine that waits for nothing ends at its first step.
    with pytest.raises(StopIteration):
        own.token_ids(TextPrompt("word " * 20), "tenant").send(None)
    long = own.token_ids(TextPrompt("word " * 2_000), "tenant")
    assert long.send(None) is not None
    long.close()


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, {}),
        ({"tool_calls": [], "content": None}, {}),
        ({"name": "a"}, {}),
        ({}, {"tools": Tools(({"type": "function", "function": {"name": "f", "description": "word " * 9}},))}),
        ({}, {"template_kwargs": {"a": "word " * 9}}),
    ],
)
async def test_chat_is_rendered_without_a_thread_if_it_is_plain(fields: dict[str, Any], more: dict[str, Any]) -> None:
    own = renderer("{% for m in messages %}{{ m.content }}{% endfor %}")
    chat = own.token_ids(ChatPrompt((USER | fields,), **more), "tenant")
    if not fields and not more:
        with pytest.raises(StopIteration):
            chat.send(None)
    else:
        assert chat.send(None) is not None
        chat.close()


async def test_many_short_messages_are_rendered_in_a_thread() -> None:
    own = renderer("{% for m in messages %}{{ m.content }}{% endfor %}")
    chat = own.token_ids(ChatPrompt((USER,) * 40), "tenant")
    assert chat.send(None) is not None
    chat.close()


async def test_long_texts_leave_places_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Renderer(fast_tokenizer(), None, max_model_len=10_000_000, vocab_size=EOS + 1)
    running: list[int] = []
    most: list[int] = []
    render = own._render

    def watched(prompt: Any, *rest: Any) -> list[int]:
        running.append(len(prompt.text))
        most.append(sum(chars >= 32 << 10 for chars in running))
        try:
            return render(prompt, *rest)
        finally:
            running.remove(len(prompt.text))

    monkeypatch.setattr(own, "_render", watched)
    texts = [TextPrompt("word " * words) for words in (8_001, 8_002, 8_003, 1_001, 1_002, 1_003)]
    await asyncio.gather(*(own.token_ids(text, "tenant") for text in texts))
    assert max(most) == 1
