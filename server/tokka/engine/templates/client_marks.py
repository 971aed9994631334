"""Finds out whether the template or a client wrote a mark in a rendered conversation. A mark is a control token's text.

`Signature`: the template writes its marks with private characters. It sees clients' text unchanged, so it works as
usual: for example, it looks for `</think>` in earlier messages and drops the reasoning before it. The private
characters change the output of a few templates, which a comparison shows. For these templates, `Placeholders` hides
the marks in clients' text behind digits.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tokka.core import ChatPrompt
from tokka.engine.templates.control_tokens import ControlTokens, Place, Written

# The 65,534 private-use characters of the last Unicode plane.
_PRIVATE, _PRIVATE_CHARS = 0x100000, 0xFFFE
_NUMBER_DIGITS = 6
# Characters that must not be replaced in a template's source or in Tokka's own format strings.
_SYNTAX = frozenset("\"'\\{}")


class Signature:
    """Private characters in place of the first and last character of each mark."""

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        ends = sorted({char for mark in control.marks for char in (mark[0], mark[-1])})
        ends = [char for char in ends if not char.isalnum() and char not in _SYNTAX]
        # Clients do not know these characters. If a client guesses one, `read` finds that the texts differ.
        first = _PRIVATE + secrets.randbelow(_PRIVATE_CHARS - len(ends))
        self._signs = {ord(char): chr(first + number) for number, char in enumerate(ends)}
        self._plain = [(chr(first + number), char) for number, char in enumerate(ends)]
        self._chars = frozenset(ends)

    def sign(self, text: str) -> str:
        return text.translate(self._signs)

    def read(self, signed: str, plain: str) -> Written | None:
        """Return the plain text with the places of clients' marks; None if the texts differ or a mark has no sign."""
        unsigned = signed
        # Ten times as fast as `str.translate` for a long text with few signs.
        for sign, char in self._plain:
            unsigned = unsigned.replace(sign, char)
        if unsigned != plain:
            return None
        client: list[Place] = []
        for match in self._control.found(plain):
            begin, end = match.span()
            ends = [at for at in (begin, end - 1) if plain[at] in self._chars]
            if not ends:
                # Neither end of this mark can be signed.
                return None
            if any(signed[at] == plain[at] for at in ends):
                client.append((begin, end))
        return Written(plain, client)


class Placeholders:
    """Digits in place of each mark. Templates trim, split and escape text, but leave digits unchanged."""

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        # Secret, so that no client can write a placeholder.
        self._prefix = str(secrets.randbelow(9 * 10**30) + 10**30)
        self._numbers = {mark: number for number, mark in enumerate(control.marks)}

    def hide(self, prompt: ChatPrompt) -> ChatPrompt:
        """Return the prompt with placeholders instead of marks."""
        tools = prompt.tools
        return replace(
            prompt,
            messages=tuple(map(self._hidden, prompt.messages)),
            tools=tools and replace(tools, functions=tuple(map(self._hidden, tools.functions))),
            template_kwargs=self._hidden(dict(prompt.template_kwargs)),
        )

    def show(self, text: str) -> Written:
        """Return the rendered text with the marks in place of the placeholders."""
        parts: list[str] = []
        client: list[Place] = []
        done = length = 0
        for begin, end, mark in self._found(text):
            parts += [text[done:begin], mark]
            length += begin - done
            client.append((length, length + len(mark)))
            length += len(mark)
            done = end
        return Written("".join([*parts, text[done:]]), client)

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._without_marks(value)
        if isinstance(value, dict):
            return {self._hidden(name): self._hidden(part) for name, part in value.items()}
        return list(map(self._hidden, value)) if isinstance(value, list) else value

    def _without_marks(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for match in self._control.found(text):
            number = f"{self._numbers[match[0]]:0{_NUMBER_DIGITS}}"
            parts += [text[done : match.start()], self._prefix, number]
            done = match.end()
        return "".join([*parts, text[done:]])

    def _found(self, text: str) -> Iterator[tuple[int, int, str]]:
        end = 0
        while (begin := text.find(self._prefix, end)) >= 0:
            end = begin + len(self._prefix) + _NUMBER_DIGITS
            number = text[end - _NUMBER_DIGITS : end]
            if number.isdecimal() and int(number) < len(self._control.marks):
                yield begin, end, self._control.marks[int(number)]
