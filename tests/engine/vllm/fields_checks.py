"""Compares the fields of vLLM's request classes with Tokka's. Run by test_vllm_fields.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from pydantic import BaseModel

from tokka.core import ChatPrompt, TextPrompt
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.constraint import StructuredOutputs
from tokka.protocol.generation import GenerationFields, StreamOptions
from tokka.protocol.models import DetokenizeRequest, TokenizeRequest
from tokka.protocol.tools import Tool
from tokka.protocol.vllm_fields import NeutralModel

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

MESSAGES = [{"role": "user", "content": "Hei"}]
TOOL = {"type": "function", "function": {"name": "f"}}
# vLLM's module and class, Tokka's class, and a body without optional fields.
_ENTRYPOINTS = "vllm.entrypoints"
PAIRS: list[tuple[str, str, type[BaseModel], dict[str, Any]]] = [
    (
        f"{_ENTRYPOINTS}.openai.chat_completion.protocol",
        "ChatCompletionRequest",
        ChatRequest,
        {"model": "m", "messages": MESSAGES},
    ),
    (f"{_ENTRYPOINTS}.openai.chat_completion.protocol", "ChatCompletionToolsParam", Tool, TOOL),
    (
        f"{_ENTRYPOINTS}.openai.completion.protocol",
        "CompletionRequest",
        CompletionRequest,
        {"model": "m", "prompt": "Hei"},
    ),
    (f"{_ENTRYPOINTS}.serve.tokenize.protocol", "TokenizeCompletionRequest", TokenizeRequest, {"prompt": "Hei"}),
    (f"{_ENTRYPOINTS}.serve.tokenize.protocol", "TokenizeChatRequest", TokenizeRequest, {"messages": MESSAGES}),
    (f"{_ENTRYPOINTS}.serve.tokenize.protocol", "DetokenizeRequest", DetokenizeRequest, {"tokens": [1]}),
    (f"{_ENTRYPOINTS}.generate.base.protocol", "StreamOptions", StreamOptions, {}),
    ("vllm.sampling_params", "StructuredOutputsParams", StructuredOutputs, {"regex": "a"}),
]
# Fields with a new default in each request.
RANDOM = {"request_id"}


def defaults_of(module: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the optional fields of a class, each with its default."""
    theirs = getattr(import_module(module), name)
    if dataclasses.is_dataclass(theirs):
        for field in dataclasses.fields(theirs):
            if field.init:
                yield field.name, field.default
        return
    for field_name, info in theirs.model_fields.items():
        if not info.is_required():
            yield field_name, info.get_default(call_default_factory=True)


def meaning(model: type[BaseModel], body: dict[str, Any]) -> Any:
    """Return the server's reading of a body."""
    read = model.model_validate_json(json.dumps(body))
    if isinstance(read, GenerationFields):
        parsed = read.parsed()
        # The default limit, if it is sent, counts as a limit of the request. The comparison leaves it out.
        sampling = dataclasses.replace(parsed.request.sampling, max_tokens=None)
        return dataclasses.replace(parsed.request, id="", sampling=sampling), parsed.form
    if isinstance(read, TokenizeRequest):
        asked = read.parsed()
        assert isinstance(asked.prompt, ChatPrompt | TextPrompt)
        if asked.prompt.add_special_tokens is None:
            is_text = isinstance(asked.prompt, TextPrompt)
            return dataclasses.replace(asked, prompt=dataclasses.replace(asked.prompt, add_special_tokens=is_text))
        return asked
    if isinstance(read, DetokenizeRequest):
        return read.parsed()
    if isinstance(read, StructuredOutputs):
        return read.constraint()
    return {name: value for name, value in read.model_dump().items() if value not in (None, False)}


@pytest.mark.parametrize(("module", "name", "ours", "body"), PAIRS)
def test_field_is_supported_or_in_the_table(
    module: str, name: str, ours: type[BaseModel], body: dict[str, Any]
) -> None:
    table = ours.neutral if issubclass(ours, NeutralModel) else {}
    known = ours.model_fields.keys() | {info.alias for info in ours.model_fields.values()} | table.keys()
    assert {field for field, _ in defaults_of(module, name)} - known == set()
    assert ours.model_fields.keys() & table.keys() == set()


@pytest.mark.parametrize(("module", "name", "ours", "body"), PAIRS)
def test_null_and_the_default_change_nothing(
    module: str, name: str, ours: type[BaseModel], body: dict[str, Any]
) -> None:
    plain = meaning(ours, body)
    unset = {field: value for field, value in defaults_of(module, name) if field not in body and field not in RANDOM}
    for field, default in unset.items():
        assert meaning(ours, {**body, field: None}) == plain, field
        assert meaning(ours, {**body, field: default}) == plain, field
    assert meaning(ours, {**body, **unset}) == plain
    assert meaning(ours, {**body, **dict.fromkeys(unset)}) == plain
