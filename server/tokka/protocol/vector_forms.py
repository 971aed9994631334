"""The forms of the responses that are made of vectors. Plain data only: parser processes send them to the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EncodingFormat = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class EmbeddingForm:
    """The form of the vectors in a response."""

    model: str
    encoding: EncodingFormat
    inputs: int
    stream: Literal[False] = False


@dataclass(frozen=True, slots=True)
class RerankForm:
    """The form of a ranking. `texts`: the documents to return; None: their numbers only."""

    model: str
    documents: int
    top_n: int
    texts: tuple[str, ...] | None
    stream: Literal[False] = False


@dataclass(frozen=True, slots=True)
class ScoreForm:
    """The form of scores. The first `left` prompts are compared with the others, one by one or one with all."""

    model: str
    left: int
    right: int
    stream: Literal[False] = False
