"""POST /v1/rerank and /v1/score: requests and responses. A score is the cosine of two vectors."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, model_validator

from tokka.core import Embedding, Event, Finished, TextPrompt, Usage
from tokka.protocol.chunks import Fold
from tokka.protocol.common import MAX_INT64, MAX_TEXT_CHARS, WireModel, invalid, now_s, token_counts
from tokka.protocol.embeddings import MAX_INPUTS, PromptUsage, VectorEncoder, VectorFields, floats_of, prompt_usage
from tokka.protocol.folding import Piece, dumps
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.response_models import TokenCounts
from tokka.protocol.similarity import Cosines
from tokka.protocol.vector_forms import RerankForm, ScoreForm

_Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]


class Document(WireModel):
    """A document as an object."""

    text: _Text


def _texts(value: Any, *, objects: bool = False) -> list[str]:
    """Parse a list of texts; with `objects` each may be an object with a text. Errors name the place."""
    if not isinstance(value, list):
        raise invalid("Input should be a list of strings")
    if not 1 <= len(value) <= MAX_INPUTS:
        raise invalid(f"1 to {MAX_INPUTS} texts are allowed; got {len(value)}")
    return [_text(item, f"[{at}]", objects=objects) for at, item in enumerate(value)]


def _text(value: Any, at: str, *, objects: bool = False) -> str:
    if objects and isinstance(value, dict):
        if value.keys() != {"text"}:
            raise invalid("A document should be a string, or an object with a text and nothing else", at)
        value, at = value["text"], f"{at}.text"
    if not isinstance(value, str):
        raise invalid("Input should be a string", at)
    if not 1 <= len(value) <= MAX_TEXT_CHARS:
        raise invalid(f"A text must have 1 to {MAX_TEXT_CHARS} characters", at)
    return value


def _documents(value: Any) -> list[str]:
    return _texts(value, objects=True)


def _one_or_more(value: Any) -> list[str] | None:
    if value is None:
        return None
    return [_text(value, "")] if isinstance(value, str) else _texts(value)


def _prompts(texts: list[str], param: str, *, is_list: bool = True) -> list[TextPrompt]:
    return [TextPrompt(text, param=f"{param}[{at}]" if is_list else param) for at, text in enumerate(texts)]


class RerankRequest(VectorFields):
    """The body of POST /v1/rerank, in the form of Jina and Cohere."""

    query: _Text
    documents: Annotated[
        list[str],
        PlainValidator(
            _documents,
            json_schema_input_type=Annotated[list[_Text | Document], Field(min_length=1, max_length=MAX_INPUTS)],
        ),
    ] = Field(description=f"Up to {MAX_INPUTS} texts, or objects with a `text`.")
    top_n: int | None = Field(
        None, ge=0, le=MAX_INT64, description="Number of results, the best ones. Default, and 0: all documents."
    )
    return_documents: bool | None = Field(None, description="Also return the texts. Default: true.")
    max_tokens_per_doc: int | None = Field(
        None, ge=0, le=MAX_INT64, description="Maximum tokens to keep of each text. Default, and 0: as many as fit."
    )

    def parsed(self) -> ParsedGeneration[RerankForm]:
        """Return the valid body as plain data: the query is the first prompt."""
        prompts = [TextPrompt(self.query, param="query"), *_prompts(self.documents, "documents")]
        asked = self.model_copy(
            # Both Jina and Cohere cut long documents.
            update={"truncate_prompt_tokens": self.truncate_prompt_tokens or self.max_tokens_per_doc or -1}
        )
        count = len(self.documents)
        form = RerankForm(
            self.model,
            count,
            min(self.top_n or count, count),
            None if self.return_documents is False else tuple(self.documents),
        )
        return ParsedGeneration(asked.embedding(prompts, "documents", prefix="rerank-"), form, self.ignored)


_Side = Annotated[
    list[str] | None,
    PlainValidator(
        _one_or_more,
        json_schema_input_type=_Text | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS)] | None,
    ),
]
_LEFT, _RIGHT = ("text_1", "queries", "data_1"), ("text_2", "documents", "data_2")


class ScoreRequest(VectorFields):
    """The body of POST /v1/score, in the form of vLLM."""

    text_1: _Side = Field(None, description="A text, or a list as long as `text_2`.")
    text_2: _Side = Field(None, description="The texts to compare with `text_1`.")
    queries: _Side = Field(None, description="Another name of `text_1`.")
    documents: _Side = Field(None, description="Another name of `text_2`.")
    data_1: _Side = Field(None, description="Another name of `text_1`.")
    data_2: _Side = Field(None, description="Another name of `text_2`.")

    @model_validator(mode="after")
    def _has_two_sides(self) -> Self:
        (_, left), (right_name, right) = self._side(_LEFT), self._side(_RIGHT)
        if len(left) not in (1, len(right)):
            raise invalid(
                f"{len(left)} texts cannot be compared with {len(right)}: send one, or as many on both sides",
                right_name,
            )
        return self

    def _side(self, names: tuple[str, ...]) -> tuple[str, list[str]]:
        """Return the name and the texts of a side. Raises unless exactly one of its names is given."""
        given = [(name, texts) for name in names if (texts := getattr(self, name)) is not None]
        if len(given) != 1:
            raise invalid(f"Send exactly one of {', '.join(names)}", names[0])
        return given[0]

    def parsed(self) -> ParsedGeneration[ScoreForm]:
        """Return the valid body as plain data: the left texts are the first prompts."""
        (left_name, left), (right_name, right) = self._side(_LEFT), self._side(_RIGHT)
        prompts = [
            *_prompts(left, left_name, is_list=len(left) > 1),
            *_prompts(right, right_name, is_list=len(right) > 1),
        ]
        form = ScoreForm(self.model, len(left), len(right))
        return ParsedGeneration(self.embedding(prompts, right_name, prefix="score-"), form, self.ignored)


class _OneObject(Fold):
    """The only object of a response."""

    def __init__(self) -> None:
        self._value: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        self._value = chunk

    def pieces(self) -> list[Piece]:
        return [dumps(self._value)]


class _CosineEncoder(VectorEncoder):
    """Encode the cosines of pairs of prompts as one object."""

    def __init__(self, pairs: list[tuple[int, int]], request_id: str) -> None:
        self._cosines = Cosines(pairs)
        self._id = request_id

    def feed(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Embedding(index, vector):
                self._cosines.add(index, floats_of(vector))
            case Finished(usage):
                return [{"id": self._id, **self._answer(self._cosines.values, usage)}]
        return []

    def fold(self) -> Fold:
        return _OneObject()

    @abstractmethod
    def _answer(self, values: list[float], usage: Usage) -> dict[str, Any]: ...


class RerankEncoder(_CosineEncoder):
    """Encode the ranking of the documents."""

    def __init__(self, form: RerankForm, request_id: str, fingerprint: str) -> None:
        super().__init__([(0, place + 1) for place in range(form.documents)], request_id)
        self._form = form

    def _answer(self, values: list[float], usage: Usage) -> dict[str, Any]:
        best = sorted(range(len(values)), key=lambda place: -values[place])[: self._form.top_n]
        texts = self._form.texts
        return {
            "model": self._form.model,
            "results": [
                {
                    "index": place,
                    "relevance_score": values[place],
                    **({} if texts is None else {"document": {"text": texts[place]}}),
                }
                for place in best
            ],
            "usage": prompt_usage(usage),
            # Cohere's clients read it.
            "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": usage.prompt_tokens}},
        }


class ScoreEncoder(_CosineEncoder):
    """Encode the score of each pair."""

    def __init__(self, form: ScoreForm, request_id: str, fingerprint: str) -> None:
        pairs = [(place if form.left > 1 else 0, form.left + place) for place in range(form.right)]
        super().__init__(pairs, request_id)
        self._form = form

    def _answer(self, values: list[float], usage: Usage) -> dict[str, Any]:
        return {
            "object": "list",
            "created": now_s(),
            "model": self._form.model,
            "data": [{"index": place, "object": "score", "score": value} for place, value in enumerate(values)],
            "usage": token_counts(usage.prompt_tokens, 0),
        }


class RankedDocument(BaseModel):
    """A returned document."""

    text: str


class RankedResult(BaseModel):
    """A document's place in the request, and its score."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class Ranking(BaseModel):
    """The documents with the highest scores, the highest first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: PromptUsage
    meta: dict[str, Any]


class Score(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(BaseModel):
    """The scores, in the order of the right texts."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: TokenCounts
