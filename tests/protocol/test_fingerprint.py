"""Fingerprints are equal for equal bodies, and differ for bodies that differ in any field that the engine sees."""

from __future__ import annotations

import itertools
import json
import pickle
import time
import types
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from tests.protocol.bodies import CHAT, chat, completion
from tests.protocol.tool_bodies import allowed, tool
from tokka.core import ChatPrompt, Constraint, GenerateRequest, Image, Sampling, TextPrompt, TokensPrompt, Tools
from tokka.parsing.worker import answer_to
from tokka.protocol.fingerprint import NOT_SEEN, fingerprint_of
from tokka.required_calls import FunctionSchema, RequiredCalls

PARAMETERS = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
NAMED = {"type": "function", "function": {"name": "f"}}
CHOICES: dict[str, Any] = {
    "none": "none",
    "auto": "auto",
    "required": "required",
    "named": NAMED,
    "named g": {"type": "function", "function": {"name": "g"}},
    "allowed auto": allowed("auto", "f"),
    "allowed required": allowed("required", "f"),
    "allowed required g": allowed("required", "g"),
}


def calling(choice: str, strict: bool, **changes: Any) -> dict[str, Any]:
    """Return the fields of a body with two functions and this `tool_choice`."""
    tools = [tool("f", PARAMETERS, strict=strict), tool("g", PARAMETERS, strict=strict)]
    return {"tools": tools, "tool_choice": CHOICES[choice], **changes}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
def test_fingerprint_of_equal_bodies_is_equal(choice: str, strict: bool) -> None:
    body = calling(choice, strict)
    seen = {fingerprint_of(chat(**body).to_core()) for _ in range(5)}
    assert len(seen) == 1
    raw = json.dumps({**CHAT, **body}).encode()
    apart = pickle.loads(answer_to("ChatRequest", raw))
    assert apart.request.fingerprint in seen


def test_fingerprint_differs_for_every_tool_choice() -> None:
    bodies = [calling(choice, strict) for choice in CHOICES if choice != "none" for strict in (True, False)]
    bodies += [calling(choice, strict=False, parallel_tool_calls=False) for choice in ("auto", "required")]
    # With `tool_choice: none`, the model sees no tools, so they do not change the fingerprint.
    bodies.append({})
    assert len({fingerprint_of(chat(**body).to_core()) for body in bodies}) == len(bodies)
    for strict in (True, False):
        assert fingerprint_of(chat(**calling("none", strict)).to_core()) == fingerprint_of(chat().to_core())


CHAT_BODIES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "b"}]},
    {"messages": [{"role": "system", "content": "a"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "assistant", "content": "a"}], "continue_final_message": True},
    {"add_generation_prompt": False},
    {"chat_template_kwargs": {"a": 1}},
    {"chat_template_kwargs": {"a": True}},
    {"chat_template_kwargs": {"a": 10**30}},
    {"chat_template_kwargs": {"a": "1"}},
    {"reasoning_effort": "low"},
    {"n": 2},
    {"max_tokens": 7},
    {"temperature": 0},
    {"temperature": 1},
    {"seed": 1},
    {"stop": "1"},
    {"stop_token_ids": [1]},
    {"logit_bias": {"1": 1}},
    {"logprobs": True},
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"regex": "a"}},
    {"structured_outputs": {"grammar": "a"}},
]
COMPLETION_BODIES: list[dict[str, Any]] = [
    {"prompt": "a"},
    {"prompt": ["a", "a"]},
    {"prompt": ["aa"]},
    {"prompt": [1, 2]},
    {"prompt": [[1, 2], [3]]},
    {"prompt": [[1], [2, 3]]},
    {"echo": True},
    {"truncate_prompt_tokens": 5},
    {"bad_words": ["a"]},
    {"allowed_token_ids": [1]},
]


def test_fingerprint_differs_where_bodies_do() -> None:
    requests = [chat(**body).to_core() for body in ({}, *CHAT_BODIES)]
    requests += [completion(**body).to_core() for body in COMPLETION_BODIES]
    assert len({fingerprint_of(request) for request in requests}) == len(requests)


def test_fingerprint_ignores_fields_that_the_engine_does_not_see() -> None:
    for body in ({"user": "x"}, {"priority": 3}, {"timeout": 5}, {"cache_salt": "x"}, {"stream": True}, {"model": "x"}):
        assert fingerprint_of(chat(**body).to_core()) == fingerprint_of(chat().to_core()), body


# -- every field of the data in a request

REQUEST = GenerateRequest(
    "id",
    "m",
    (TextPrompt("a"),),
    Sampling(constraint=Constraint("json", "{}", "p", RequiredCalls((FunctionSchema("f", {}, {}),), 1))),
)
TOOLS = Tools(({"type": "function", "function": {"name": "f"}},))


def with_constraint(constraint: Any) -> GenerateRequest:
    return replace(REQUEST, sampling=replace(REQUEST.sampling, constraint=constraint))


def with_prompt(prompt: Any) -> GenerateRequest:
    return replace(REQUEST, prompts=(prompt,))


CONSTRAINT = REQUEST.sampling.constraint
assert CONSTRAINT is not None
assert CONSTRAINT.calls is not None
# By dataclass in a request: an example, and a function that returns a request with it.
EXAMPLES: dict[type, tuple[Any, Callable[[Any], GenerateRequest]]] = {
    GenerateRequest: (REQUEST, lambda request: request),
    Sampling: (REQUEST.sampling, lambda sampling: replace(REQUEST, sampling=sampling)),
    Constraint: (CONSTRAINT, with_constraint),
    RequiredCalls: (
        CONSTRAINT.calls,
        lambda calls: with_constraint(Constraint("json", "{}", "p", calls)),
    ),
    FunctionSchema: (
        CONSTRAINT.calls.functions[0],
        lambda one: with_constraint(Constraint("json", "{}", "p", RequiredCalls((one,), 1))),
    ),
    ChatPrompt: (ChatPrompt(({"role": "user", "content": "a"},), TOOLS), with_prompt),
    Tools: (TOOLS, lambda tools: with_prompt(ChatPrompt((), tools))),
    Image: (Image("data:,", "p"), lambda image: with_prompt(ChatPrompt((), images=(image,)))),
    TextPrompt: (TextPrompt("a"), with_prompt),
    TokensPrompt: (TokensPrompt(array("I", [1, 2])), with_prompt),
}


def classes_in(hint: Any) -> Iterator[type]:
    """Yield the dataclasses that a value of this type may hold."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from classes_in(part)


def other(hint: Any, value: Any) -> Any:
    """Return a different value of this type."""
    for made in candidates(hint):
        if made != value or type(made) is not type(value):
            return made
    raise AssertionError(f"say in candidates() what a value of {hint} may be")


def candidates(hint: Any) -> Iterator[Any]:
    origin, args = get_origin(hint) or hint, get_args(hint)
    plain: dict[Any, tuple[Any, ...]] = {
        bool: (True, False),
        int: (1, 2),
        float: (0.25, 0.5),
        str: ("x", "y"),
        bytes: (bytes(32), b"1" * 32),
        Any: ("any",),
    }
    if origin in (Union, types.UnionType):
        for part in args:
            yield from candidates(part)
    elif origin is Literal:
        yield from args
    elif origin in (tuple, frozenset):
        yield origin()
        yield origin(itertools.islice(candidates(args[0]), 1))
    elif origin in (dict, Mapping):
        yield {}
        yield {next(candidates(args[0])): next(candidates(args[1]))}
    elif origin is Sequence:
        yield array("I", [7])
    elif origin in EXAMPLES:
        example, first = EXAMPLES[origin][0], fields(origin)[0].name
        yield replace(example, **{first: other(get_type_hints(origin)[first], getattr(example, first))})
    else:
        yield from plain.get(hint, ())


def test_fingerprint_knows_every_class_of_a_request() -> None:
    known: set[type] = set()
    left: list[type] = [GenerateRequest]
    while left:
        kind = left.pop()
        assert kind in EXAMPLES, f"{kind.__name__} is new in requests: add an example of it here"
        known.add(kind)
        left += [part for hint in get_type_hints(kind).values() for part in classes_in(hint) if part not in known]
    assert known == set(EXAMPLES)


@pytest.mark.parametrize(("kind", "name"), [(kind, field.name) for kind in EXAMPLES for field in fields(kind)], ids=str)
def test_fingerprint_covers_each_field_that_is_seen(kind: type, name: str) -> None:
    example, holding = EXAMPLES[kind]
    changed = replace(example, **{name: other(get_type_hints(kind)[name], getattr(example, name))})
    is_same = fingerprint_of(holding(changed)) == fingerprint_of(holding(example))
    if name == "fingerprint":
        # A known fingerprint is returned unchanged.
        assert not is_same
    else:
        assert is_same == (name in NOT_SEEN.get(kind, ()))


def test_fingerprint_lists_no_field_that_is_gone() -> None:
    for kind, names in NOT_SEEN.items():
        assert names <= {field.name for field in fields(kind)}


def test_fingerprint_of_a_million_tokens_takes_little() -> None:
    tokens = replace(REQUEST, prompts=(TokensPrompt(array("I", range(1_000_000))),))
    texts = replace(REQUEST, prompts=(TextPrompt("word " * 800_000),))
    for request in (tokens, texts):
        took_s = []
        for _ in range(5):
            began_s = time.thread_time()
            fingerprint_of(request)
            took_s.append(time.thread_time() - began_s)
        # Hashing the tokens one by one takes 100 ms.
        assert min(took_s) < 0.03
