"""Collects the text and the tool calls of one choice, in order."""

from __future__ import annotations

from tokka.engine.reading.pieces import CallPiece, Piece


class CallOutput:
    """Blanks around calls are not text: they wait until text follows, and a call discards them."""

    def __init__(self) -> None:
        # The calls so far: the name, and the pieces of the arguments.
        self.calls: list[tuple[str, list[str]]] = []
        self._pieces: list[Piece] = []
        # Blanks at the start or behind a call. None once text has followed.
        self._blanks: str | None = ""

    @property
    def blanks(self) -> str:
        """The blanks that wait."""
        return self._blanks or ""

    def take(self) -> list[Piece]:
        """Return the pieces since the last `take`."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def show(self, text: str) -> None:
        """Add text."""
        if self._blanks is not None:
            if not text.strip():
                self._blanks += text
                return
            text, self._blanks = self._blanks + text, None
        if text:
            self._pieces.append(text)

    def begin_call(self, name: str, arguments: str = "") -> None:
        """Add a call, with the arguments known so far."""
        self._pieces.append(CallPiece(len(self.calls), arguments, name))
        self.calls.append((name, [arguments]))
        self._blanks = ""

    def add_arguments(self, arguments: str) -> None:
        """Add to the arguments of the last call."""
        if arguments:
            self.calls[-1][1].append(arguments)
            self._pieces.append(CallPiece(len(self.calls) - 1, arguments))

    def finish(self) -> None:
        """Add the waiting blanks if the choice has no call, so that all of it is text."""
        if not self.calls and self._blanks:
            self._pieces.append(self._blanks)
