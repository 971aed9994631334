"""Prompts in OpenAI's four forms: a string, a list of strings, a list of token ids, a list of token id lists."""

from __future__ import annotations

from array import array
from typing import Annotated, Any

from pydantic import Field

from tokka.core import Prompt, TextPrompt, TokensPrompt
from tokka.protocol.common import ID_TYPECODE, MAX_TEXT_CHARS, TokenId, invalid

MAX_PROMPT_TOKENS = 8 * 1024 * 1024
MAX_TOKEN_ID = 2**31

_Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
_Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]


def wire_prompts(most: int, text: Any = _Text) -> Any:
    """Return the type of the documented field, for at most so many prompts."""
    items = Field(min_length=1, max_length=most)
    return text | Annotated[list[text], items] | _Tokens | Annotated[list[_Tokens], items]


def prompts_of(value: Any, most: int, *, param: str = "", allows_empty: bool = True) -> list[Prompt]:
    """Parse prompts; errors name the place.

    `param`: the name of the field, which the prompts keep. `allows_empty`: whether a text may be empty.
    """
    if isinstance(value, str):
        return [_text(value, "", param, allows_empty)]
    if not isinstance(value, list):
        raise invalid("Input should be a string, a list of strings, a list of token ids or a list of token id lists")
    if not value:
        raise invalid("The prompt is empty: send at least one token")
    if _is_token(value[0]):
        return [_tokens(value, "", param)]
    if len(value) > most:
        raise invalid(f"At most {most} prompts are allowed; got {len(value)}")
    prompts: list[Prompt] = []
    for place, item in enumerate(value):
        at = f"[{place}]"
        if isinstance(item, str):
            prompts.append(_text(item, at, param, allows_empty))
        elif isinstance(item, list):
            prompts.append(_tokens(item, at, param))
        else:
            raise invalid("Input should be a string or a list of token ids", at)
        if type(prompts[-1]) is not type(prompts[0]):
            raise invalid("Strings and token ids cannot be mixed in one prompt list", at)
    return prompts


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(text: str, at: str, param: str, allows_empty: bool) -> TextPrompt:
    if len(text) > MAX_TEXT_CHARS:
        raise invalid(f"A prompt may have at most {MAX_TEXT_CHARS} characters", at)
    if not text and not allows_empty:
        raise invalid("The text is empty: send at least one character", at)
    return TextPrompt(text, param=param and param + at)


def _tokens(ids: list[Any], at: str, param: str) -> TokensPrompt:
    if not ids:
        raise invalid("The prompt is empty: send at least one token", at)
    # Check in C first: a million valid ids take 20 ms.
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= MAX_TOKEN_ID:
        place = next(place for place, token in enumerate(ids) if not _is_token(token) or not 0 <= token < MAX_TOKEN_ID)
        raise invalid("Input should be a token id: a whole number from 0", f"{at}[{place}]")
    return TokensPrompt(array(ID_TYPECODE, ids), param and param + at)
