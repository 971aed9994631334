"""Estimates the size of a prompt before it is tokenised. Pure."""

from __future__ import annotations

from tokka.core import ChatPrompt, Prompt, TextPrompt, TokensPrompt

# Estimated characters of a function's description and schema.
_TOOL_CHARS = 400


def text_chars(prompt: Prompt) -> int:
    """Return an estimate of the characters that the prompt's tokenisation has to process."""
    match prompt:
        case TextPrompt(text):
            return len(text)
        case ChatPrompt(messages=messages, tools=tools):
            written = sum(len(message.get("content") or "") for message in messages)
            documents = prompt.template_kwargs.get("documents", ())
            written += sum(len(text) for document in documents for text in document.values())
            return written + _TOOL_CHARS * len(tools.functions if tools else ())
        case TokensPrompt():
            return 0
