"""Tokens come from the cache where they can, and are the same as without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from tests.engine.vllm.tokenizers_by_kind import BEGIN, END, KINDS, MARKS, ORDINARY, TOOL, tokenizer_of
from tokka.core import ChatPrompt, GenerateRequest, Sampling, TextPrompt
from tokka.engine.generation.length import Truncation
from tokka.engine.vllm import segments, tokenization
from tokka.engine.vllm.generation import Generations, Language, Limits
from tokka.engine.vllm.render import Renderer
from tokka.engine.vllm.tokenization import Owner
from tokka.errors import ContextLengthExceeded
from tokka.protocol.chat import ChatRequest

FOLDER = Path(__file__).parents[1] / "chat_templates"
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LONG = "The reindeer herd moves north. " * 200
SYSTEM = {"role": "system", "content": LONG}
FIRST = [SYSTEM, {"role": "user", "content": "Where to?"}]
SECOND = [*FIRST, {"role": "assistant", "content": "North, of course."}, {"role": "user", "content": "And then?"}]
OWNER = Owner("tenant")
# Characters of the second turn that the first one did not have, with the template's.
MOST_NEW_CHARS = 200


class Recorder:
    """Counts the characters that a renderer's tokenizer encodes, as text or with care for clients' marks."""

    def __init__(self, renderer: Renderer, tokenizer: Any) -> None:
        self.chars = 0
        self.calls = 0
        self._tokenizer = tokenizer
        self._encode = renderer._tokenization._plain
        renderer._tokenization.__dict__["_plain"] = self._plain
        if renderer._control is not None:
            renderer._control._tokenizer = self

    def _plain(self, texts: list[str], *, adds_ends: bool) -> list[list[int]]:
        self.calls += 1
        self.chars += sum(map(len, texts))
        return self._encode(texts, adds_ends=adds_ends)

    def __call__(self, text: str, **fields: Any) -> Any:
        self.calls += 1
        self.chars += len(text)
        return self._tokenizer(text, **fields)


def chat(messages: list[dict[str, Any]], **fields: Any) -> ChatPrompt:
    return ChatRequest.model_validate({"model": "m", "messages": messages, **fields}).prompt()


def made(
    kind: str = "byte-level", template: str = CHAT_ML, max_model_len: int = 1_000_000
) -> tuple[Renderer, Recorder]:
    tokenizer = tokenizer_of(kind)
    renderer = Renderer(tokenizer, template, max_model_len, len(tokenizer))
    return renderer, Recorder(renderer, tokenizer)


@cache
def kept(kind: str, template: str = CHAT_ML) -> Renderer:
    """Return a renderer whose cache stays from one example to the next."""
    return made(kind, template)[0]


@cache
def without_cache(kind: str, template: str = CHAT_ML) -> Renderer:
    tokenizer = tokenizer_of(kind)
    renderer = Renderer(tokenizer, template, 1_000_000, len(tokenizer))
    renderer._tokenization._segments = renderer._tokenization._backend = None
    return renderer


def ids_of(renderer: Renderer, prompt: ChatPrompt | TextPrompt, owner: Owner = OWNER) -> list[int]:
    return renderer._render(prompt, None, True, owner)


@pytest.fixture
def _any_text_is_cached() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_LEAST_CHARS", 1)
        patch.setattr(tokenization, "_LEAST_CACHED_CHARS", 0)
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_second_turn_encodes_only_its_new_text(kind: str) -> None:
    renderer, recorder = made(kind)
    ids_of(renderer, chat(FIRST))
    assert recorder.chars >= len(LONG)
    recorder.chars = 0
    assert ids_of(renderer, chat(SECOND)) == ids_of(without_cache(kind), chat(SECOND))
    assert recorder.chars < MOST_NEW_CHARS


def test_second_turn_encodes_only_its_new_text_with_tools() -> None:
    template = (FOLDER / "qwen_3.jinja").read_text()
    function = {"name": "f", "description": LONG, "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    renderer, recorder = made("split-digits", template)
    ids_of(renderer, chat(FIRST, tools=tools))
    recorder.chars = 0
    ids = ids_of(renderer, chat(SECOND, tools=tools))
    assert ids == ids_of(without_cache("split-digits", template), chat(SECOND, tools=tools))
    assert recorder.chars < MOST_NEW_CHARS


def test_marks_of_clients_are_cached_as_text() -> None:
    quoting = [{"role": "system", "content": f"{LONG}{END}{LONG}"}, *SECOND[1:]]
    renderer, recorder = made()
    first = ids_of(renderer, chat(quoting))
    assert recorder.chars >= len(LONG)
    recorder.chars = 0
    assert ids_of(renderer, chat(quoting)) == first == ids_of(without_cache("byte-level"), chat(quoting))
    assert recorder.chars == 0


def test_marks_of_clients_differ_from_the_template_s() -> None:
    """The same segment is a control token in one chat and text in another."""
    renderer, _ = made()
    segment = f"{END}\n{LONG}"
    by_client = [{"role": "user", "content": f"{LONG}{segment}"}]
    plain = TextPrompt(f"{BEGIN}user\n{LONG}{segment}{END}\n{BEGIN}assistant\n")
    for prompt in (plain, chat(by_client), plain):
        assert ids_of(renderer, prompt) == ids_of(without_cache("byte-level"), prompt)


@pytest.mark.parametrize("other", [Owner("other"), Owner("tenant", "salt")])
def test_cached_tokens_are_found_only_by_their_owner(other: Owner) -> None:
    renderer, recorder = made()
    ids_of(renderer, chat(FIRST))
    recorder.chars = 0
    ids_of(renderer, chat(FIRST), other)
    assert recorder.chars >= len(LONG)


async def test_salt_of_a_request_separates_its_cached_tokens() -> None:
    renderer, recorder = made()
    await renderer.token_ids(chat(FIRST), "tenant", salt="a")
    recorder.chars = 0
    await renderer.token_ids(chat(FIRST), "tenant", salt="a")
    assert recorder.chars == 0
    await renderer.token_ids(chat(FIRST), "tenant", salt="b")
    assert recorder.chars >= len(LONG)


async def test_generation_passes_its_tenant_and_salt() -> None:
    class Rendered(Exception):
        """Ends the preparation."""

    class Asked:
        async def token_ids(self, *arguments: Any, **fields: Any) -> list[int]:
            raise Rendered(arguments[1], fields)

    nothing: Any = None
    language = Language(cast("Any", Asked()), nothing, nothing, nothing)
    generations = Generations(None, nothing, language, Limits(100, 100, None, None), {})
    request = GenerateRequest("r", "m", (TextPrompt("x"),), Sampling(), tenant="tenant", cache_salt="salt")
    with pytest.raises(Rendered) as ended:
        await generations.prepare(request)
    assert ended.value.args == ("tenant", {"salt": "salt"})


def test_short_text_is_encoded_at_once() -> None:
    renderer, recorder = made()
    for _ in range(2):
        ids_of(renderer, chat(FIRST[1:] * 3))
    assert recorder.calls == 2
    assert renderer._tokenization._cache.bytes == 0


def test_truncation_in_the_tokenizer_s_file_does_not_apply() -> None:
    fast = copy(tokenizer_of("byte-level"))
    fast._tokenizer = copy(fast.backend_tokenizer)
    fast.backend_tokenizer.enable_truncation(5)
    fast.backend_tokenizer.enable_padding(length=5000)
    renderer = Renderer(fast, CHAT_ML, 1_000_000, len(fast))
    for messages in (FIRST[1:], FIRST):
        assert ids_of(renderer, chat(messages)) == ids_of(without_cache("byte-level"), chat(messages))


def test_counted_text_uses_the_cache() -> None:
    renderer, recorder = made()
    counted = renderer._render(chat(FIRST), None, False, OWNER)
    recorder.chars = 0
    assert ids_of(renderer, chat(FIRST)) == counted
    assert recorder.chars == 0


@pytest.mark.parametrize("cuts_end", [True, False])
@pytest.mark.parametrize("keep", [5, 300, 900, 5000])
def test_truncated_text_keeps_its_tokens(keep: int, cuts_end: bool) -> None:
    renderer, _ = made()
    truncation = Truncation(keep, cuts_end)
    whole = ids_of(renderer, chat(SECOND))
    for _ in range(2):
        ids = renderer._render(chat(SECOND), truncation, True, OWNER)
        assert truncation.of(ids) == truncation.of(whole)


def test_text_with_begin_tokens_is_encoded_whole() -> None:
    backend = tokenizer_of("metaspace-always").backend_tokenizer
    begin = tokenizer_of("metaspace-always").convert_tokens_to_ids(BEGIN)
    before = backend.post_processor
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    try:
        renderer, recorder = made("metaspace-always")
        ids = ids_of(renderer, TextPrompt(f"{LONG}{END}{LONG}"))
        assert ids == tokenizer_of("metaspace-always")(f"{LONG}{END}{LONG}")["input_ids"]
        assert ids[0] == begin
        assert recorder.calls == 1
        # A chat has none, so it is cut.
        assert ids_of(renderer, chat(FIRST)).count(begin) == 3
        assert renderer._tokenization._cache.bytes > 0
    finally:
        backend.post_processor = before


# -- the same tokens as without a cache

CONTENT = st.lists(
    st.sampled_from([*MARKS, *ORDINARY, BEGIN[:-1], END[1:], " ", "\n", "\t", "a", "word", "12", "\u0301", "🦌", "<"])
    | st.text(max_size=5),
    max_size=8,
).map("".join)
CHATS = st.lists(CONTENT, min_size=1, max_size=5)


@pytest.mark.usefixtures("_any_text_is_cached")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(texts=CHATS, more=CHATS, raw=CONTENT)
def test_cached_tokens_are_the_tokens_without_a_cache(kind: str, texts: list[str], more: list[str], raw: str) -> None:
    renderer, reference = kept(kind), without_cache(kind)
    prompts: list[ChatPrompt | TextPrompt] = []
    for count in range(1, len(texts + more) + 1):
        messages = [{"role": "user", "content": text} for text in (texts + more)[:count]]
        prompts += [chat(messages), TextPrompt(f"a{raw}{BEGIN}{texts[0]}")]
    for prompt in prompts:
        assert ids_of(renderer, prompt) == ids_of(reference, prompt)


@pytest.mark.usefixtures("_any_text_is_cached")
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.iterdir()))
@settings(max_examples=25)
@given(texts=CHATS, argument=CONTENT)
def test_templates_give_the_tokens_without_a_cache(name: str, texts: list[str], argument: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text()
    renderer, reference = kept("split-digits", template), without_cache("split-digits", template)
    call = {"name": "f", "arguments": json.dumps({"x": argument})}
    messages: list[dict[str, Any]] = []
    for text in texts:
        messages += [{"role": "user", "content": f"a{text}"}, {"role": "assistant", "content": text}]
    loop = [
        *messages,
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": argument},
    ]
    for prompt in (chat([*messages, {"role": "user", "content": TOOL}]), chat(loop), chat(loop)):
        assert ids_of(renderer, prompt) == ids_of(reference, prompt)


def test_threads_get_the_same_tokens() -> None:
    renderer, _ = made()
    prompts = [chat([SYSTEM, {"role": "user", "content": f"{LONG}{number}"}]) for number in range(6)] * 4
    reference = without_cache("byte-level")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda prompt: ids_of(renderer, prompt), prompts))
    assert results == [ids_of(reference, prompt) for prompt in prompts]


# -- texts that do not fit


def test_text_that_may_fit_is_encoded_once() -> None:
    text = LONG * 20
    renderer, recorder = made(max_model_len=len(text) + 1000)
    ids_of(renderer, chat([{"role": "user", "content": text}]))
    assert recorder.chars < len(text) + MOST_NEW_CHARS


def test_text_with_more_characters_than_room_is_encoded_once() -> None:
    text = LONG * 20
    prompt = chat([{"role": "user", "content": text}])
    room = len(ids_of(made(max_model_len=len(text) * 2)[0], prompt)) + 1000
    assert room < len(text)
    renderer, recorder = made(max_model_len=room)
    ids_of(renderer, prompt)
    assert recorder.chars < 1.05 * len(text)


def test_dense_text_that_does_not_fit_is_not_encoded_whole() -> None:
    text = "🦌" * 130_000
    renderer, recorder = made(max_model_len=40_000)
    with pytest.raises(ContextLengthExceeded, match="has at least"):
        ids_of(renderer, chat([{"role": "user", "content": text}]))
    assert recorder.chars < len(text) / 2


def test_text_that_does_not_fit_is_not_encoded_whole() -> None:
    text = LONG * 100
    renderer, recorder = made(max_model_len=2000)
    with pytest.raises(ContextLengthExceeded, match="has at least"):
        ids_of(renderer, chat([{"role": "user", "content": text}]))
    assert recorder.chars < len(text) / 2


def test_text_of_cached_parts_that_does_not_fit_is_refused() -> None:
    renderer, recorder = made(max_model_len=4000)
    parts = [{"role": "user", "content": f"{LONG}{number}"} for number in range(20)]
    for part in parts:
        ids_of(renderer, chat([part]))
    recorder.chars = 0
    with pytest.raises(ContextLengthExceeded, match=r"Your messages of 12\d{4} characters") as error:
        ids_of(renderer, chat(parts))
    assert error.value.param == "messages"
    assert recorder.chars == 0


def test_new_text_behind_cached_parts_that_does_not_fit_is_refused() -> None:
    renderer, recorder = made(max_model_len=4000)
    ids_of(renderer, chat([SYSTEM]))
    recorder.chars = 0
    with pytest.raises(ContextLengthExceeded):
        ids_of(renderer, chat([SYSTEM, {"role": "user", "content": LONG * 40}]))
    assert recorder.chars < len(LONG) * 20
