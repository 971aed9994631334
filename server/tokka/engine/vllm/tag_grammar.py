"""The grammar of free text with tags in it, in Lark."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

_GOES_ON = re.compile(r'["\w.+-]')
# What the grammar's language can name as a token.
_TOKEN = re.compile(r"<[^<>\s]+>")


def tags_grammar(tags: Sequence[dict[str, Any]], content: Callable[[Any], str], added: frozenset[str]) -> str:
    """Return a grammar of any text, in which each trigger begins a tag.

    `content`: from a tag's schema to its rule. `added`: the marks that are tokens of their own; text never matches
    those.
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
    """Whether no tag ends with what a string, a number or a word of JSON could go on with."""
    return not any(_GOES_ON.match(tag["end"]) for tag in tags)


def _literal(text: str, added: frozenset[str]) -> str:
    """Return a text as strings and tokens."""
    parts: list[str] = []
    done = 0
    for match in _TOKEN.finditer(text):
        if match[0] in added:
            parts += [_quoted(text[done : match.start()]), match[0]]
            done = match.end()
    return " ".join(filter(None, [*parts, _quoted(text[done:])]))


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode() if text else ""
