"""Reads a text in pieces, and folds the pieces again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tests.engine.reading.tool_texts import TOOLS
from tokka.core import Tools
from tokka.engine.reading.call_reader import CallReader
from tokka.engine.reading.forms import Form
from tokka.engine.reading.pieces import CallPiece, ParseWhole, Piece


def read(
    form: Form,
    pieces: Sequence[str],
    tools: Tools = TOOLS,
    whole: ParseWhole | None = None,
    *,
    cut_short: bool = False,
) -> tuple[list[tuple[str, str]], str]:
    """Return the tool calls in a text that arrives in these pieces, and the text beside them."""
    reader = CallReader(form, tools, whole)
    got = [piece for text in pieces for piece in reader.feed(text)]
    return folded([*got, *reader.finish(cut_short=cut_short)])


def folded(pieces: Sequence[Piece]) -> tuple[list[tuple[str, str]], str]:
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, str):
            assert piece
            continue
        assert isinstance(piece, CallPiece)
        if piece.name is not None:
            assert piece.number == len(calls)
            calls.append((piece.name, piece.arguments))
        else:
            assert piece.number == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    return calls, "".join(piece for piece in pieces if isinstance(piece, str))


def split(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]
