"""Makes grammars in a process of its own: whatever a schema or an expression does to a compiler, it does it here.

Started by grammars.py as `python -m tokka.engine.vllm.grammar`. Reads one JSON object a line, answers with one: first
the tokenizer, then constraint by constraint. Imports no vllm and no torch, so that it is back in half a second.
"""

from __future__ import annotations

import os
import random
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from tokka.engine.processes import COMPILER_NAME
from tokka.engine.vllm.child import end_with, leave_interrupts_to_the_server
from tokka.protocol.json_schema import subschemas

# The largest that the bounds of protocol/ let through takes half of it, and the engine keeps some tens.
_MEMORY_BYTES = 64 << 20
_STACK_BYTES = 1 << 20
# Steps of a trial run: what fits nothing, or runs into a limit of the library, does so in the first few.
_TRIAL_STEPS = 16
_BLAME_S = 0.3
# A reference that does not lead to a part taken out of its schema.
_ELSEWHERE = re.compile(r'"\$ref":"#(?!/\$defs/|/definitions/)')
_NOTHING_FITS = "Unsatisfiable schema"
_IN_OUR_WORDS = {
    "NoExtension": "nothing can match it",
    "oneOf constraints": "the alternatives of a oneOf may overlap, which cannot be enforced: use anyOf",
    "parser error: Too many items": "it is too complex, or what matches it has no end",
    "Parser Error: Current row has": "it has too many alternatives or optional parts at one place",
}
# Left to itself a small model fills an answer with blanks; OpenAI's are compact, too.
_JSON_OPTIONS: Any = {"whitespace_flexible": False}


class Refused(Exception):
    """Why a constraint cannot be used, and where below it the reason is."""

    def __init__(self, reason: str, at: str = "") -> None:
        super().__init__(reason)
        self.at = at


class Compiler:
    def __init__(self, tokenizer: str, vocab_size: int, eos: int) -> None:
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos)
        self._eos = eos

    def grammar(self, kind: str, text: str) -> str:
        """Return the grammar as the engine compiles it, having compiled it and run some steps. Raises Refused."""
        grammar = self._converted(kind, text)
        try:
            self._try(grammar)
        except Refused as error:
            if kind == "json":
                self._blame(orjson.loads(text), str(error))
            raise error from None
        return grammar

    def _converted(self, kind: str, text: str) -> str:
        try:
            match kind:
                case "json":
                    return LLMatcher.grammar_from_json_schema(text, defaults=_JSON_OPTIONS)
                case "regex":
                    return LLMatcher.grammar_from_regex(text)
                case "choice":
                    # One expression is one state of the parser; as many rules would be as many states.
                    return LLMatcher.grammar_from_regex("|".join(map(re.escape, orjson.loads(text))))
                case _:
                    return LLMatcher.grammar_from_lark(any_to_lark(text))
        except Exception as error:
            # The converters raise what they like.
            raise Refused(_one_line(str(error))) from None

    def _try(self, grammar: str) -> None:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise Refused(_one_line(matcher.get_error()))
        # The same steps each time.
        chance = random.Random(0)  # noqa: S311 - no secret
        for _ in range(_TRIAL_STEPS):
            mask = matcher.compute_bitmask()
            if matcher.is_error():
                raise Refused(_one_line(matcher.get_error()))
            token = self._any_of(mask, chance)
            if token == self._eos or matcher.is_stopped():
                return
            matcher.consume_token(token)

    def _step_to_pattern(self, schema: dict[str, Any]) -> str:
        pattern = schema.get("pattern", "")
        return ".pattern" if LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern), None) else ""

    def _any_of(self, mask: bytes, chance: random.Random) -> int:
        """Return a token of the mask, the end only if there is no other."""
        first = chance.randrange(len(mask))
        for place in (*range(first, len(mask)), *range(first)):
            if mask[place]:
                bits = [bit for bit in range(8) if mask[place] >> bit & 1 and place * 8 + bit != self._eos]
                if bits:
                    token: int = place * 8 + chance.choice(bits)
                    return token
        return self._eos

    def _blame(self, schema: dict[str, Any], reason: str) -> None:
        """Raise Refused for the deepest part of a schema that cannot be used alone, for a reason of the same kind."""
        until_s = time.monotonic() + _BLAME_S
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        for at, part in _inside_out(schema):
            text = orjson.dumps({**shared, **part}).decode()
            if _ELSEWHERE.search(text) or time.monotonic() > until_s:
                continue
            matcher = LLMatcher(self._tokenizer, self._converted("json", text), log_level=0)
            why = _one_line(matcher.get_error()) if matcher.is_error() else ""
            # Of alternatives one may fit nothing: that is no error in itself.
            if why and why.startswith(_NOTHING_FITS) == reason.startswith(_NOTHING_FITS):
                raise Refused(why, at + self._step_to_pattern(part))


def _inside_out(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for step, part in subschemas(schema):
        if isinstance(part, dict):
            yield from _inside_out(part, at + step)
            yield at + step, part


def _one_line(message: str) -> str:
    for beginning, said in _IN_OUR_WORDS.items():
        if message.startswith(beginning):
            return said
    # Below this word follows the library's own state; and of a faulty expression its last line says why.
    lines = [line.strip(" ^|") for line in message.split("<state>", maxsplit=1)[0].splitlines()]
    if reasons := [line for line in lines if line.startswith("error: ")]:
        return f"not a regular expression that can be used ({reasons[0][7:][:300]})"
    return "; ".join(line for line in lines if line)[:300] or "it could not be compiled"


def _answer(compiler: Compiler, line: bytes) -> dict[str, str]:
    asked = orjson.loads(line)
    try:
        return {"grammar": compiler.grammar(asked["kind"], asked["text"])}
    except Refused as refused:
        return {"reason": str(refused), "at": refused.at}


def _bound_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve() -> None:
    compiler = Compiler(**orjson.loads(sys.stdin.buffer.readline()))
    _bound_memory()
    answers = sys.stdout.buffer
    answers.write(b"{}\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(orjson.dumps(_answer(compiler, line)) + b"\n")
        answers.flush()
    os._exit(0)


def main() -> None:
    Path("/proc/self/comm").write_text(COMPILER_NAME)
    end_with(int(sys.argv[1]))
    leave_interrupts_to_the_server()
    # Less than the engine's threads have: a recursion that ends well here ends well there.
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
