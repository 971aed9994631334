"""Compiles constraints in a separate process, which a constraint may crash.

compiler_process.py starts it as `python -m tokka.engine.grammars.compiler`. It reads one JSON object per line and
answers with one: first the tokenizer, then the constraints. It imports neither vllm nor torch, so it starts in half a
second.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from tokka.engine.grammars.json_bounds import json_rules, with_bounded_multiples
from tokka.engine.grammars.limits import COMPILE_S, FEW_CHOICES, STATES, matcher_of, with_limit
from tokka.engine.grammars.tag_grammar import is_told_from_json, tags_grammar
from tokka.engine.supervision.lifeline import end_with, leave_interrupts_to_the_server
from tokka.engine.supervision.processes import COMPILER_NAME
from tokka.protocol.json_schema import subschemas
from tokka.sandbox.confinement import restrict

# Maximum bytes that the process may allocate for constraints. The largest constraint that protocol/ accepts takes half
# of it, and the engine caches some tens of grammars.
_MEMORY_BYTES = 64 << 20
_STACK_BYTES = 1 << 20
# Maximum steps of a trial run. An unsatisfiable constraint fails within the first few; one that grows without end
# reaches its limit by the last.
_TRIAL_STEPS = 200
_TRIAL_S = 0.3
_BLAME_S = 0.3
# A reference that does not resolve in a part taken out of its schema.
_ELSEWHERE = re.compile(r'"\$ref":"#(?!/\$defs/|/definitions/)')
_NOTHING_FITS = "Unsatisfiable schema"
_TOO_COMPLEX = "it is too complex: the next token depends on too much of the text before it"
_TOO_COMPLEX_FOR_MANY = f"it is too complex for more than {FEW_CHOICES} choices: ask for fewer, or make it simpler"
_IN_OUR_WORDS = {
    "NoExtension": "nothing can match it",
    "oneOf constraints": "the alternatives of a oneOf may overlap, which cannot be enforced: use anyOf",
    "parser error: Too many items": "it is too complex, or its matches never end",
    "Parser Error: Too many items": "it is too complex, or its matches never end",
    "lexer error: ": _TOO_COMPLEX,
    "Parser Error: Current row has": "it has too many alternatives or optional parts at one place",
}
# Compact JSON, as at OpenAI. Otherwise a small model fills its output with whitespace.
_JSON_OPTIONS: Any = {"whitespace_flexible": False}
# The JSON style that models with the Hermes format were trained on.
_HERMES_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Refused(Exception):
    """A constraint cannot be used. `at`: path of the faulty part, below the constraint."""

    def __init__(self, reason: str, at: str = "") -> None:
        super().__init__(reason)
        self.at = at


class Compiler:
    """Turns constraints into grammars for one tokenizer, and tries them out."""

    def __init__(self, tokenizer: str, vocab_size: int, eos: int) -> None:
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos)
        self._eos = eos
        self._added = frozenset(token["content"] for token in orjson.loads(tokenizer)["added_tokens"])

    def grammar(self, kind: str, text: str, states: int = STATES) -> str:
        """Compile a constraint, run trial steps, and return the grammar for the engine. Raises Refused.

        `states`: maximum states of the library's automaton.
        """
        reason = ""
        # The bounds alone may make a schema too complex, so also try without them.
        for tried in dict.fromkeys((_with_bounds(kind, text), text)):
            grammar = self._converted(kind, tried)
            reason = self._fault(grammar, states, _TRIAL_STEPS)
            if not reason:
                return with_limit(grammar, states, self._bound(kind, text))
        # vllm/design 2.3.6
        if kind == "json":
            self._blame(orjson.loads(text), reason, states)
        raise Refused(reason)

    def _converted(self, kind: str, text: str) -> str:
        try:
            match kind:
                case "json":
                    return LLMatcher.grammar_from_json_schema(text, defaults=_JSON_OPTIONS)
                case "regex":
                    return LLMatcher.grammar_from_regex(text)
                case "choice":
                    # One expression takes one state of the parser; a rule per choice would take one state each.
                    return LLMatcher.grammar_from_regex("|".join(map(re.escape, orjson.loads(text))))
                case "calls":
                    held = orjson.loads(text)
                    return LLMatcher.grammar_from_lark(calls_grammar(**held, added=self._added))
                case "tags":
                    return LLMatcher.grammar_from_lark(tags_grammar(orjson.loads(text), _tag_content, self._added))
                case _:
                    return LLMatcher.grammar_from_lark(any_to_lark(text))
        except Exception as error:
            # The converters raise exceptions of any type.
            raise Refused(_one_line(str(error))) from None

    def _bound(self, kind: str, text: str) -> str:
        """Return a second grammar that bounds the JSON in the first; "" if there is none or it cannot be told apart."""
        match kind:
            case "json":
                return f"start: json_text\n{json_rules()}"
            case "calls":
                held = orjson.loads(text)
                return calls_bound(held["answer"], parallel=held["parallel"], added=self._added)
            case "tags" if is_told_from_json(tags := orjson.loads(text)):
                return f"{tags_grammar(tags, lambda _: 'json_text', self._added)}\n{json_rules()}"
        return ""

    def _fault(self, grammar: str, states: int, steps: int) -> str:
        """Return why a grammar cannot be used, as far as `steps` trial steps show it; "" if they find no fault."""
        matcher = matcher_of(self._tokenizer, with_limit(grammar, states))
        # A fixed seed gives the same steps each time.
        chance = random.Random(0)  # noqa: S311 - no secret
        until_s = time.thread_time() + _TRIAL_S
        for _ in range(steps):
            if matcher.is_error() or time.thread_time() > until_s:
                break
            token = self._any_of(matcher.compute_bitmask(), chance)
            if token == self._eos or matcher.is_stopped():
                break
            matcher.consume_token(token)
        reason = _one_line(matcher.get_error()) if matcher.is_error() else ""
        return _TOO_COMPLEX_FOR_MANY if reason == _TOO_COMPLEX and states < STATES else reason

    def _step_to_pattern(self, schema: dict[str, Any], states: int, steps: int) -> str:
        if "pattern" not in schema:
            return ""
        pattern = LLMatcher.grammar_from_regex(schema["pattern"])
        return ".pattern" if self._fault(pattern, states, steps) else ""

    def _any_of(self, mask: bytes, chance: random.Random) -> int:
        """Return a random token of the mask; the end token only if there is no other."""
        first = chance.randrange(len(mask))
        for place in (*range(first, len(mask)), *range(first)):
            if mask[place]:
                bits = [bit for bit in range(8) if mask[place] >> bit & 1 and place * 8 + bit != self._eos]
                if bits:
                    token: int = place * 8 + chance.choice(bits)
                    return token
        return self._eos

    def _blame(self, schema: dict[str, Any], reason: str, states: int) -> None:
        """Raise Refused for the deepest part of a schema that fails alone, for a reason of the same kind."""
        until_s = time.thread_time() + _BLAME_S
        # Compiling alone finds most faults, unsatisfiable schemas included. Only complexity needs trial steps.
        steps = _TRIAL_STEPS if reason in (_TOO_COMPLEX, _TOO_COMPLEX_FOR_MANY) else 0
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        for at, part in _inside_out(schema):
            text = orjson.dumps({**shared, **part}).decode()
            if _ELSEWHERE.search(text) or time.thread_time() > until_s:
                continue
            why = self._fault(self._converted("json", text), states, steps)
            # One alternative of several may be unsatisfiable without an error.
            if why and why.startswith(_NOTHING_FITS) == reason.startswith(_NOTHING_FITS):
                raise Refused(why, at + self._step_to_pattern(part, states, steps))


def calls_grammar(
    functions: dict[str, Any], answer: dict[str, Any] | None, *, parallel: bool, added: frozenset[str]
) -> str:
    """Return a grammar of free text in which tool calls in Hermes format follow their functions' schemas.

    `functions`: schemas by function name. `answer`: the schema of a text without tool calls; tool calls then have no
    text around them. `parallel`: allow several tool calls. `added`: marks that are single tokens; free text never
    matches them.
    """
    lines = _frame(is_free=answer is None, parallel=parallel, added=added)
    if answer is not None:
        lines.append(f"answer: %json {orjson.dumps({**answer, 'x-guidance': _JSON_OPTIONS}).decode()}")
    lines.append(f"call: {' | '.join(f'call_{place}' for place in range(len(functions)))}")
    for place, (name, schema) in enumerate(functions.items()):
        head = orjson.dumps(f'\n{{"name": "{name}", "arguments": ').decode()
        body = orjson.dumps({**schema, "x-guidance": _HERMES_JSON}).decode()
        lines.append(f'call_{place}: {head} %json {body} "}}\\n"')
    return "\n".join(lines)


def _tag_content(schema: dict[str, Any]) -> str:
    return f"%json {orjson.dumps({**schema, 'x-guidance': _HERMES_JSON}).decode()}"


def calls_bound(answer: dict[str, Any] | None, *, parallel: bool, added: frozenset[str]) -> str:
    """Return the second grammar, which bounds the JSON in texts of `calls_grammar`."""
    lines = _frame(is_free=answer is None, parallel=parallel, added=added)
    if answer is not None:
        lines.append("answer: json_text")
    return "\n".join([*lines, 'call: "\\n" json_text "\\n"', json_rules()])


def _frame(*, is_free: bool, parallel: bool, added: frozenset[str]) -> list[str]:
    """Return the rules for the text around tool calls. `is_free`: allow any text there."""
    mark = "<tool_call>" if "<tool_call>" in added else '"<tool_call>"'
    closer = "</tool_call>" if "</tool_call>" in added else '"</tool_call>"'
    if is_free:
        lazy = "" if "<tool_call>" in added else "[lazy]"
        start = "(opener call closer)* TEXT" if parallel else "TEXT | opener call closer"
        lines = [f"start: {start}", "TEXT: /(.|\\n)*/", f"opener{lazy}: TEXT {mark}"]
    else:
        more = ' ("\\n" opener call closer)*' if parallel else ""
        lines = [f"start: answer | opener call closer{more}", f"opener: {mark}"]
    return [*lines, f"closer: {closer}"]


def _with_bounds(kind: str, text: str) -> str:
    """Return the constraint with added bounds that only its own schemas can enforce."""
    if kind not in ("json", "calls", "tags") or '"multipleOf"' not in text:
        return text
    held = orjson.loads(text)
    if kind == "json":
        return orjson.dumps(with_bounded_multiples(held)).decode()
    if kind == "tags":
        return orjson.dumps([{**tag, "schema": with_bounded_multiples(tag["schema"])} for tag in held]).decode()
    functions = {name: with_bounded_multiples(schema) for name, schema in held["functions"].items()}
    return orjson.dumps({**held, "functions": functions, "answer": with_bounded_multiples(held["answer"])}).decode()


def _inside_out(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for step, part in subschemas(schema):
        if isinstance(part, dict):
            yield from _inside_out(part, at + step)
            yield at + step, part


def _one_line(message: str) -> str:
    for beginning, said in _IN_OUR_WORDS.items():
        if message.startswith(beginning):
            return said
    # After this word the library prints its own state. For a faulty expression, a line with `error: ` gives the reason.
    lines = [line.strip(" ^|") for line in message.split("<state>", maxsplit=1)[0].splitlines()]
    if reasons := [line for line in lines if line.startswith("error: ")]:
        return f"not a supported regular expression ({reasons[0][7:][:300]})"
    return "; ".join(line for line in lines if line)[:300] or "it could not be compiled"


def _answer(compiler: Compiler, line: bytes) -> dict[str, Any]:
    began_s = time.process_time()
    # A longer compilation is ended by SIGPROF, which no other program sends.
    signal.setitimer(signal.ITIMER_PROF, COMPILE_S)
    asked = orjson.loads(line)
    said: dict[str, Any]
    try:
        said = {"grammar": compiler.grammar(asked["kind"], asked["text"], asked["states"])}
    except Refused as refused:
        said = {"reason": str(refused), "at": refused.at}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {**said, "cpu_s": time.process_time() - began_s}


def _bound_memory() -> None:
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve() -> None:
    compiler = Compiler(**orjson.loads(sys.stdin.buffer.readline()))
    _bound_memory()
    # From here on the process reads clients' input.
    refused = restrict()
    _say({"sandbox": refused, "cpu_s": time.process_time()})
    for line in sys.stdin.buffer:
        _say(_answer(compiler, line))
    os._exit(0)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    Path("/proc/self/comm").write_text(COMPILER_NAME, encoding="utf-8")
    end_with(int(sys.argv[1]))
    leave_interrupts_to_the_server()
    # A smaller stack than the engine's threads have: a recursion that fits here fits there.
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
