"""The field that a client probably meant by an unknown one. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_MAX_NAME_CHARS = 64
_LEAST_LIKENESS = 0.75
_LIMITS = ("max_completion_tokens", "max_tokens")
_OUTPUT_LIMIT = ("max_output_tokens",)
_STRUCTURED = ("structured_outputs",)
# Names of other servers and of OpenAI's older versions, with our names for them.
_MEANT: dict[str, tuple[str, ...]] = {
    "functions": ("tools",),
    "function_call": ("tool_choice",),
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "guided_json_object": _STRUCTURED,
    "json_schema": ("response_format", *_STRUCTURED),
    "format": ("response_format", *_STRUCTURED),
    "regex": _STRUCTURED,
    "ebnf": _STRUCTURED,
    "grammar": _STRUCTURED,
    "max_new_tokens": _LIMITS,
    "max_output_tokens": _LIMITS,
    "max_length": _LIMITS,
    "num_predict": _LIMITS,
    "n_predict": _LIMITS,
    "stop_sequences": ("stop",),
    "stop_words": ("stop",),
    "repeat_penalty": ("repetition_penalty",),
    "num_return_sequences": ("n",),
    "enable_thinking": ("chat_template_kwargs",),
    "thinking": ("reasoning_effort",),
    "reasoning": ("reasoning_effort",),
    "system": ("messages", "instructions"),
    "messages": ("input",),
    "prompt": ("input",),
    "max_tokens": _OUTPUT_LIMIT,
    "max_completion_tokens": _OUTPUT_LIMIT,
    "response_format": ("text",),
    "reasoning_effort": ("reasoning",),
    "input": ("messages", "prompt"),
}


def meant_by(name: str, fields: Collection[str]) -> str:
    """Return the known field that an unknown one probably means, or ""."""
    for meant in _MEANT.get(name, ()):
        if meant in fields:
            return meant
    if name in fields:
        return ""
    similar = difflib.get_close_matches(name[:_MAX_NAME_CHARS], fields, 1, _LEAST_LIKENESS)
    return similar[0] if similar else ""
