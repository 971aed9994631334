"""Texts with tool calls of each model family, good and bad, and their correct reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokka.core import Tools

NAMES = ("get_weather", "get_weather_report", "search-web", "now")
TOOLS = Tools(
    tuple(
        {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
        for name in NAMES
    )
)
ONE_CALL = Tools(TOOLS.functions, parallel=False)


@dataclass(frozen=True)
class Said:
    """A text, its tool calls, and the text beside them. `odd`: the parser library alone reads it differently."""

    parser: str
    text: str
    calls: tuple[tuple[str, Any], ...] = ()
    content: str = ""
    odd: bool = False


NESTED = {"a": [1, {"b": "}"}, [[]]], "c": {"d": {"e": None}}}
QUOTES = {"query": 'say "hej\\" {now}', "more": "</b>\n[x]"}
NESTED_TEXT = '{"a": [1, {"b": "}"}, [[]]], "c": {"d": {"e": null}}}'
QUOTES_TEXT = r'{"query": "say \"hej\\\" {now}", "more": "</b>\n[x]"}'


def _hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def _v3(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def _v31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def _deepseek(*calls: str) -> str:
    return f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"


OULU = ("get_weather", {"city": "Oulu ☃ Ääni 🦌"})
OULU_TEXT = '{"city": "Oulu ☃ Ääni 🦌"}'

GOOD = [
    Said("hermes", _hermes("get_weather", OULU_TEXT), (OULU,)),
    Said("hermes", "Let me see.\n" + _hermes("get_weather", OULU_TEXT), (OULU,), "Let me see.\n"),
    Said("hermes", _hermes("search-web", QUOTES_TEXT), (("search-web", QUOTES),)),
    Said(
        "hermes",
        _hermes("now", NESTED_TEXT) + "\n" + _hermes("get_weather_report", "{}"),
        (("now", NESTED), ("get_weather_report", {})),
    ),
    Said("hermes", '<tool_call>{"arguments":{"a":1} , "name":"now"}</tool_call>', (("now", {"a": 1}),)),
    Said(
        "hermes",
        r'<tool_call>{"name": "now", "arguments": {"\u00e4": "\ud83e\udd8c", "n": 1.50}}',
        (("now", {"ä": "🦌", "n": 1.5}),),
    ),
    # Keys behind the arguments, with brackets and quotes in them.
    Said(
        "hermes",
        r'<tool_call>{"name": "now", "arguments": {"a": 1}, "id": "}{\" x", "type": "function"}</tool_call>'
        + _hermes("get_weather", OULU_TEXT),
        (("now", {"a": 1}), OULU),
    ),
    Said(
        "mistral",
        '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "9]{"}, {"name": "now", "arguments": {}}]',
        (("now", {}), ("now", {})),
        odd=True,
    ),
    # Arguments in a string, as small models write them.
    Said(
        "hermes",
        r'<tool_call>{"name":"now","arguments":"{\"a\": \"\\u00e4 }\"}"}</tool_call>'
        + "\n"
        + _hermes("get_weather", OULU_TEXT),
        (("now", {"a": "ä }"}), OULU),
        odd=True,
    ),
    Said(
        "hermes", r'<tool_call>{"arguments": " {\"a\":1}\n", "name": "now"}</tool_call>', (("now", {"a": 1}),), odd=True
    ),
    Said("llama3_json", r'{"name": "now", "parameters": "{\"a\": {}}"}', (("now", {"a": {}}),), odd=True),
    Said("hermes", '<tool_call>{"name": "now", "arguments": ""}</tool_call>', (("now", {}),), odd=True),
    Said("hermes", '<tool_call>{"name": "now", "arguments": null, "id": null}</tool_call>', (("now", {}),), odd=True),
    Said(
        "hermes",
        '<tool_call>{"id": 1, "name": "now", "arguments": {}}</tool_call>' + _hermes("get_weather", OULU_TEXT),
        (("now", {}), OULU),
    ),
    Said("hermes", "Just <b>text</b> with < and <tool", content="Just <b>text</b> with < and <tool"),
    Said("hermes", "", content=""),
    Said("hermes", " \n", content=" \n"),
    Said("qwen3_json", "\n" + _hermes("get_weather", OULU_TEXT), (OULU,)),
    Said("llama3_json", '{"name": "get_weather", "parameters": ' + OULU_TEXT + "}", (OULU,)),
    Said(
        "llama3_json",
        '<|python_tag|>{"name": "search-web", "parameters": ' + QUOTES_TEXT + "}",
        (("search-web", QUOTES),),
    ),
    Said(
        "llama4_json",
        '{"type": "function", "name": "now", "parameters": {}}; {"name": "get_weather", "arguments": '
        + OULU_TEXT
        + "}",
        (("now", {}), OULU),
    ),
    Said("llama3_json", "The set {1, 2} is small.", content="The set {1, 2} is small."),
    Said("mistral", "[TOOL_CALLS]get_weather[ARGS]" + OULU_TEXT, (OULU,)),
    Said(
        "mistral",
        "Sure.[TOOL_CALLS]search-web" + QUOTES_TEXT + "[TOOL_CALLS]now{}",
        (("search-web", QUOTES), ("now", {})),
        "Sure.",
    ),
    Said("deepseek_v3", _deepseek(_v3("get_weather", OULU_TEXT)), (OULU,)),
    Said(
        "deepseek_v3",
        "Hi " + _deepseek(_v3("now", NESTED_TEXT), "\n", _v3("get_weather", OULU_TEXT)),
        (("now", NESTED), OULU),
        "Hi ",
    ),
    Said(
        "deepseek_v31",
        _deepseek(_v31("search-web", QUOTES_TEXT), _v31("now", "{}")),
        (("search-web", QUOTES), ("now", {})),
    ),
    Said("deepseek_v31", "No call at all.", content="No call at all."),
    Said(
        "qwen3_coder",
        "Ok\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOulu ☃ Ääni 🦌\n</parameter>\n</function>\n"
        "</tool_call>",
        (OULU,),
        "Ok\n",
    ),
    Said(
        "qwen3_xml",
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOulu ☃ Ääni 🦌\n</parameter>\n</function>\n"
        "</tool_call>",
        (("now", {}), OULU),
    ),
    Said("pythonic", '[get_weather(city="Oulu ☃ Ääni 🦌"), now()]', (OULU, ("now", {}))),
    Said("llama4_pythonic", '<|python_start|>[get_weather(city="Oulu ☃ Ääni 🦌")]<|python_end|>', (OULU,)),
    Said("pythonic", "[1] is a footnote.", content="[1] is a footnote."),
]
# Calls of functions that do not exist. The client gets them, and can tell the model.
GOOD += [
    Said("hermes", _hermes("Read", OULU_TEXT), (("Read", OULU[1]),)),
    Said(
        "hermes",
        "Hm.\n" + _hermes("mcp.read file", "{}") + _hermes("now", "{}"),
        (("mcp.read file", {}), ("now", {})),
        "Hm.\n",
    ),
    Said("hermes", '<tool_call>{"name": "Read"}</tool_call>', (("Read", {}),), odd=True),
    Said("llama3_json", '{"name": "Read", "parameters": ' + OULU_TEXT + "}", (("Read", OULU[1]),)),
    Said("mistral", "[TOOL_CALLS]get_weathers[ARGS]" + OULU_TEXT, (("get_weathers", OULU[1]),)),
    Said("mistral", "[TOOL_CALLS]mcp.read{}[TOOL_CALLS]now{}", (("mcp.read", {}), ("now", {})), odd=True),
    Said("deepseek_v3", _deepseek(_v3("Read", NESTED_TEXT), "\n", _v3("now", "{}")), (("Read", NESTED), ("now", {}))),
    Said("deepseek_v31", _deepseek(_v31("Read", OULU_TEXT)), (("Read", OULU[1]),)),
    Said("pythonic", "[read(path='a')]", (("read", {"path": "a"}),)),
]
# Broken, cut-off or useless calls. Text that is not a call stays text, in full.
BAD = [
    Said("hermes", "<tool_call> is a tag.", content="<tool_call> is a tag.", odd=True),
    Said("hermes", '<tool_call>{"name": "get_wea', content='<tool_call>{"name": "get_wea'),
    Said("hermes", "<tool_call>{name: now}</tool_call>", content="<tool_call>{name: now}</tool_call>"),
    Said("hermes", '<tool_call>{"city": "Oulu"}</tool_call>', content='<tool_call>{"city": "Oulu"}</tool_call>'),
    Said(
        "hermes",
        '<tool_call>{"name": "now", "arguments": "x"}</tool_call>',
        content='<tool_call>{"name": "now", "arguments": "x"}</tool_call>',
        odd=True,
    ),
    Said(
        "hermes",
        '<tool_call>{"name": "now", "arguments": "[1]"}</tool_call>' + _hermes("now", '{"a": 1}'),
        (("now", {"a": 1}),),
        '<tool_call>{"name": "now", "arguments": "[1]"}</tool_call>',
        odd=True,
    ),
    Said("hermes", _hermes("now", "{}") + " That was it.", (("now", {}),), "That was it.", odd=True),
    Said("hermes", _hermes("now", "{}") + "[1] note", (("now", {}),), "[1] note", odd=True),
    Said("llama3_json", '{"name": "Helsinki"}', content='{"name": "Helsinki"}'),
    Said("llama3_json", '{"name": "Helsinki", "size": 5}', content='{"name": "Helsinki", "size": 5}'),
    Said("mistral", "[TOOL_CALLS]as in f(x) {1}", content="[TOOL_CALLS]as in f(x) {1}", odd=True),
    Said("llama3_json", '{"city": "Oulu"}', content='{"city": "Oulu"}'),
    Said("mistral", "[TOOL_CALLS] are what I write.", content="[TOOL_CALLS] are what I write.", odd=True),
    Said("deepseek_v3", "<｜tool▁calls▁begin｜>oh", content="<｜tool▁calls▁begin｜>oh", odd=True),
    Said("qwen3_coder", "<tool_call>\nnothing", content="<tool_call>\nnothing", odd=True),
    Said("pythonic", "[get_weather(city=", content="[get_weather(city="),
]
