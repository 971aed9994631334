"""Compares vLLM's libraries for structured output, for the tables of docs/adr/0014-structured-outputs.md.

Run `python -m benchmarks.grammars.backends guidance MODEL_FOLDER`, or with xgrammar. It needs no engine. Masks are
computed on one thread.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))


def of(*, required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted, "additionalProperties": False}


def many(items: Any, **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **bounds}


def text(**bounds: Any) -> dict[str, Any]:
    return {"type": "string", **bounds}


def either(*schemas: Any) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


NULL = {"type": "null"}
ADDRESS = of(street=STRING, city=STRING, zip=text(pattern="^[0-9]{5}$"), country={"enum": ["FI", "SE", "NO"]})
REALISTIC: dict[str, dict[str, Any]] = {
    "flat": of(name=STRING, age=INTEGER, member=BOOLEAN),
    "bounded strings": of(name=text(minLength=1, maxLength=40), note=text(maxLength=200)),
    "bounded numbers": of(age={**INTEGER, "minimum": 0, "maximum": 150}, score={**NUMBER, "minimum": 0, "maximum": 1}),
    "enums": of(mood={"enum": ["glad", "sad", "calm"]}, language={"enum": ["fi", "sv", "en"]}),
    "a large enum": of(code={"enum": [f"CODE_{i:04d}" for i in range(500)]}),
    "tagged anyOf": either(of(kind={"const": "circle"}, radius=NUMBER), of(kind={"const": "square"}, side=NUMBER)),
    "tagged oneOf": {
        "oneOf": [of(kind={"const": "cat"}, lives=INTEGER), of(kind={"const": "dog"}, tricks=many(STRING))]
    },
    "nested": of(person=of(name=STRING, address=ADDRESS), orders=many(of(id=INTEGER, total=NUMBER))),
    "deep": of(a=of(b=of(c=of(d=of(e=of(f=STRING)))))),
    "bounded array": of(tags=many(text(maxLength=20), minItems=1, maxItems=5)),
    "long array": of(values=many(INTEGER, maxItems=100)),
    "tuple": of(point={"type": "array", "prefixItems": [NUMBER, NUMBER, STRING], "items": False, "minItems": 3}),
    "nullable": of(a=either(STRING, NULL), b=either(INTEGER, NULL), c={"type": ["number", "null"]}),
    "optional": of(required=["id"], id=INTEGER, title=STRING, body=STRING, tags=many(STRING)),
    "20 optional": of(required=[], **{f"field_{i}": STRING for i in range(20)}),
    "60 required": of(required=None, **{f"field_{i}": [STRING, INTEGER, BOOLEAN, NUMBER][i % 4] for i in range(60)}),
    "map": {"type": "object", "additionalProperties": INTEGER},
    "open object": {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
    "any object": {"type": "object"},
    "times": of(day=text(format="date"), at=text(format="date-time")),
    "ids": of(id=text(format="uuid"), mail=text(format="email")),
    "addresses": of(v4=text(format="ipv4"), v6=text(format="ipv6")),
    "links": of(url=text(format="uri"), host=text(format="hostname")),
    "patterns": of(phone=text(pattern=r"^\+[0-9]{6,15}$"), sku=text(pattern="^[A-Z]{3}-[0-9]{4}$")),
    "definitions": {"$defs": {"address": ADDRESS}, **of(home=ref("address"), work=ref("address"))},
    "linked list": {"$defs": {"node": of(value=INTEGER, next=either(ref("node"), NULL))}, **ref("node")},
    "tree": {"$defs": {"tree": of(name=STRING, children=many(ref("tree")))}, **of(root=ref("tree"))},
    "expression": {
        "$defs": {"e": either(NUMBER, of(op={"enum": ["+", "-"]}, left=ref("e"), right=ref("e")))},
        **of(expression=ref("e")),
    },
    "steps": of(steps=many(of(explanation=STRING, output=STRING), minItems=1, maxItems=10), answer=STRING),
    "tool call": of(
        name={"enum": ["get_weather", "search"]},
        arguments=of(
            required=["city"], city=STRING, unit={"enum": ["C", "F"]}, days={**INTEGER, "minimum": 1, "maximum": 14}
        ),
    ),
}
OPEN = {"type": "object"}
# By keyword: a schema, and a text that does not match it.
KEYWORDS: dict[str, tuple[dict[str, Any], str]] = {
    "enum": ({"enum": ["a", "b"]}, '"c"'),
    "const": ({"const": "a"}, '"b"'),
    "several types": ({"type": ["string", "null"]}, "1"),
    "anyOf": (either(STRING, INTEGER), "true"),
    "oneOf, disjoint": ({"oneOf": [STRING, INTEGER]}, "true"),
    "oneOf, overlapping": ({"oneOf": [NUMBER, INTEGER]}, "1"),
    "allOf": ({"allOf": [STRING, {"enum": ["yes", "no"]}]}, '"maybe"'),
    "allOf of objects": ({"allOf": [{**OPEN, "required": ["a"]}, {**OPEN, "required": ["b"]}]}, '{"a":1}'),
    "not": ({"not": STRING}, '"a"'),
    "if and then": ({"if": STRING, "then": {"const": "a"}}, '"b"'),
    "$ref with siblings": ({**ref("s"), "maxLength": 1, "$defs": {"s": STRING}}, '"ab"'),
    "minimum": ({**INTEGER, "minimum": 5}, "4"),
    "exclusiveMaximum": ({**NUMBER, "exclusiveMaximum": 1}, "1"),
    "fractional bounds": ({**NUMBER, "minimum": 0.1, "maximum": 0.3}, "0.5"),
    "multipleOf": ({**INTEGER, "multipleOf": 7}, "8"),
    "minLength": (text(minLength=2), '"a"'),
    "maxLength": (text(maxLength=2), '"abc"'),
    "pattern": (text(pattern="^a+$"), '"b"'),
    "pattern, not anchored": (text(pattern="b"), '"acc"'),
    "pattern and maxLength": (text(pattern="^a+$", maxLength=2), '"aaa"'),
    "format": (text(format="date"), '"x"'),
    "format and maxLength": (text(format="email", maxLength=6), '"a@bbbbbbb.fi"'),
    "unknown format": (text(format="iban"), '"x"'),
    "minItems": (many(INTEGER, minItems=2), "[1]"),
    "maxItems": (many(INTEGER, maxItems=1), "[1,2]"),
    "prefixItems": ({"type": "array", "prefixItems": [INTEGER], "items": False}, '["a"]'),
    "uniqueItems": ({**many({"enum": [1, 2]}), "uniqueItems": True}, "[1,1]"),
    "contains": ({"type": "array", "contains": {"const": 1}}, "[2]"),
    "required": (of(a=INTEGER), "{}"),
    "required, not declared": ({**OPEN, "required": ["z"]}, '{"a":1}'),
    "additionalProperties": ({**OPEN, "additionalProperties": INTEGER}, '{"a":"b"}'),
    "minProperties": ({**OPEN, "additionalProperties": INTEGER, "minProperties": 1}, "{}"),
    "maxProperties": ({**OPEN, "additionalProperties": INTEGER, "maxProperties": 1}, '{"a":1,"b":2}'),
    "patternProperties": ({**of(), "patternProperties": {"^a": INTEGER}}, '{"a":"x"}'),
    "patternProperties and properties": (
        {**of(required=[], b=STRING), "patternProperties": {"^a": INTEGER}},
        '{"a":"x"}',
    ),
    "propertyNames": ({**OPEN, "propertyNames": {"pattern": "^a$"}}, '{"b":1}'),
    "dependentRequired": ({**of(required=[], a=INTEGER, b=INTEGER), "dependentRequired": {"a": ["b"]}}, '{"a":1}'),
    "unevaluatedProperties": (
        {"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False},
        '{"z":1}',
    ),
    "without a type": ({"minLength": 3}, '"a"'),
    "contentEncoding": (text(contentEncoding="base64"), '"?"'),
    "an empty enum": ({"enum": []}, "1"),
    "a contradiction": (text(minLength=3, maxLength=1), '"ab"'),
    "a loop": ({"$ref": "#"}, "1"),
}


class Guidance:
    """The library llguidance."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        import llguidance.hf
        import llguidance.torch

        self._library = llguidance
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, vocab_size)
        self.mask = llguidance.torch.allocate_token_bitmask(1, vocab_size)

    def compile(self, schema: Any) -> Any:
        options: Any = {"whitespace_flexible": False}
        grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=options)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def fill(self, matcher: Any) -> None:
        self._library.torch.fill_next_token_bitmask(matcher, self.mask, 0)

    def take(self, matcher: Any, token: int) -> bool:
        return bool(matcher.consume_token(token))

    def may_end(self, matcher: Any) -> bool:
        return bool(matcher.is_accepting())


class Xgrammar:
    """The library xgrammar."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        import xgrammar

        self._library = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=False)
        self._end = tokenizer.eos_token_id
        self.mask = xgrammar.allocate_token_bitmask(1, vocab_size)

    def compile(self, schema: Any) -> Any:
        compiled = self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=(",", ":"))
        return self._library.GrammarMatcher(compiled)

    def fill(self, matcher: Any) -> None:
        matcher.fill_next_token_bitmask(self.mask, 0)

    def take(self, matcher: Any, token: int) -> bool:
        return bool(matcher.accept_token(token))

    def may_end(self, matcher: Any) -> bool:
        return self.take(matcher, self._end)


def walk(backend: Any, matcher: Any, end: int, steps: int = 60) -> list[float]:
    """Take random allowed tokens; return the seconds that each mask took."""
    import numpy

    chance, times = random.Random(1), []
    for _ in range(steps):
        began = time.perf_counter()
        backend.fill(matcher)
        times.append(time.perf_counter() - began)
        allowed = numpy.flatnonzero(numpy.unpackbits(backend.mask[0].numpy().view(numpy.uint8), bitorder="little"))
        allowed = allowed[allowed != end]
        if not len(allowed) or not backend.take(matcher, int(chance.choice(allowed))):
            break
    return times


def verdict(backend: Any, encode: Callable[[str], list[int]], schema: Any, wrong: str) -> str:
    try:
        matcher = backend.compile(schema)
    except Exception:
        return "refused"
    passed = all(backend.take(matcher, token) for token in encode(wrong)) and backend.may_end(matcher)
    return "ignored" if passed else "enforced"


def main(name: str, folder: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend: Any = {"guidance": Guidance, "xgrammar": Xgrammar}[name](tokenizer, len(tokenizer))
    backend.compile(REALISTIC["flat"])
    compiled, masks = {}, []
    for label, schema in REALISTIC.items():
        began = time.perf_counter()
        matcher = backend.compile(schema)
        compiled[label] = 1e3 * (time.perf_counter() - began)
        masks += [1e6 * seconds for seconds in walk(backend, matcher, tokenizer.eos_token_id)]
    ranked = sorted(compiled, key=lambda label: -compiled[label])
    print(f"{name}, {len(REALISTIC)} schemas: compiled in {statistics.median(compiled.values()):.1f} ms (median)")
    print("slowest, ms:", {label: round(compiled[label], 1) for label in ranked[:6]})
    cuts = statistics.quantiles(masks, n=100)
    print(f"a mask, us: median {cuts[49]:.0f}, 99 % {cuts[98]:.0f}, most {max(masks):.0f}")
    encode = lambda wrong: tokenizer.encode(wrong, add_special_tokens=False)  # noqa: E731 - one argument of a call
    verdicts = {label: verdict(backend, encode, *case) for label, case in KEYWORDS.items()}
    for kind in ("enforced", "refused", "ignored"):
        labels = [label for label, said in verdicts.items() if said == kind]
        print(f"{kind}: {len(labels)}" + ("" if kind == "enforced" else f" {labels}"))


if __name__ == "__main__":
    main(*sys.argv[1:3])
