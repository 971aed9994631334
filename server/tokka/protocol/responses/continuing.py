"""Requests that continue a stored conversation. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokka.core import ChatPrompt
from tokka.errors import InvalidRequest
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.responses.conversation import images_of, messages_of, missing_call, with_instructions
from tokka.protocol.responses.items import PlainItem
from tokka.protocol.responses.resource import ResponseForm


def continued(
    parsed: ParsedGeneration[ResponseForm], before: Sequence[PlainItem], items: Sequence[PlainItem]
) -> ParsedGeneration[ResponseForm]:
    """Return the request with its own `items` after those of the conversation `before`. Raises InvalidRequest."""
    form = parsed.form
    if not before and list(items) == list(form.items):
        return parsed
    whole = (*before, *items)
    if (call_id := missing_call(whole)) is not None:
        raise InvalidRequest(
            f"Invalid value for 'input': No function_call item before the output has the call_id {call_id[:64]!r}: send"
            " that item, too.",
            param="input",
        )
    (prompt,) = parsed.request.prompts
    assert isinstance(prompt, ChatPrompt)
    messages = tuple(with_instructions(form.instructions, messages_of(whole)))
    prompt = replace(prompt, messages=messages, images=images_of(whole, "input"))
    request = replace(parsed.request, prompts=(prompt,), fingerprint=None)
    return replace(parsed, request=request, form=replace(form, items=whole))
