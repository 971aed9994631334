"""Builds Lark grammars of free text that contains tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

_GOES_ON = re.compile(r'["\w.+-]')
# Text that Lark can name as a single token.
_TOKEN = re.compile(r"<[^<>\s]+>")


def tags_grammar(tags: Sequence[dict[str, Any]], content: Callable[[Any], str], added: frozenset[str]) -> str:
    """Return a grammar of free text in which each trigger begins a tag.

    `content`: returns the rule of a tag's schema. `added`: marks that are single tokens; free text never matches them.
    """
    triggers = list(dict.fromkeys(tag["trigger"] for tag in tags))
    names = " | ".join(f"tag_{place}" for place in range(len(tags)))
    lines = [f"start: ({names})* TEXT", "TEXT: /(.|\\n)*/"]
    for place, trigger in enumerate(triggers):
        mark = _TOKEN.match(trigger)
        is_token = mark is not None and mark[0] in added
        lines.append(f"trigger_{place}{'' if is_token else '[lazy]'}: TEXT {_literal(trigger, added)}")
    for place, tag in enumerate(tags):
        trigger = tag["trigger"]
        parts = [
            f"trigger_{triggers.index(trigger)}",
            _literal(tag["begin"].removeprefix(trigger), added),
            content(tag["schema"]),
            _literal(tag["end"], added),
        ]
        lines.append(f"tag_{place}: {' '.join(filter(None, parts))}")
    return "\n".join(lines)


def is_told_from_json(tags: Sequence[dict[str, Any]]) -> bool:
    """Return whether no tag's end can be read as the continuation of a string, number or word of JSON."""
    return not any(_GOES_ON.match(tag["end"]) for tag in tags)


def _literal(text: str, added: frozenset[str]) -> str:
    """Return a text as a sequence of Lark strings and tokens."""
    parts: list[str] = []
    done = 0
    for match in _TOKEN.finditer(text):
        if match[0] in added:
            parts += [_quoted(text[done : match.start()]), match[0]]
            done = match.end()
    return " ".join(filter(None, [*parts, _quoted(text[done:])]))


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode() if text else ""
