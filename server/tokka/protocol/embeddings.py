"""POST /v1/embeddings: the request, and the response of the vectors."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator

from tokka.core import Embedding, Event, Finished, GenerateRequest, Prompt, Sampling, Usage
from tokka.protocol import sse
from tokka.protocol.chunks import Encoder, Fold
from tokka.protocol.common import MAX_INT64, MAX_TEXT_CHARS, BodyModel, new_id
from tokka.protocol.common_fields import Model, Priority
from tokka.protocol.folding import Grown, JsonItems, JsonObject, Piece, RawJson, dumps
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.prompts import prompts_of, wire_prompts
from tokka.protocol.vector_forms import EmbeddingForm, EncodingFormat

MAX_INPUTS = 2048
MAX_DIMENSIONS = 65_536

_WireText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]


def _inputs(value: Any) -> list[Prompt]:
    return prompts_of(value, MAX_INPUTS, param="input", allows_empty=False)


class VectorFields(BodyModel):
    """The common fields of all requests for vectors."""

    model: Model
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1, le=MAX_INT64)] | None = Field(
        None, description="Maximum tokens to keep of each text. -1: as many as the model takes. Default: refuse."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="The side of a text to cut off. Default: `right`, which keeps its beginning."
    )
    timeout: float | None = Field(None, gt=0, le=86400, description="Maximum seconds for the request.")
    priority: Priority = None
    user: str | None = Field(None, max_length=1024)

    def embedding(
        self, prompts: Iterable[Prompt], param: str, *, prefix: str = "embd-", dimensions: int | None = None
    ) -> GenerateRequest:
        """Return the request that makes a vector of each prompt. `param`: the wire field of the prompts."""
        return GenerateRequest(
            id=new_id(prefix),
            model=self.model,
            prompts=tuple(prompts),
            # One vector for each prompt, and no tokens.
            sampling=Sampling(max_tokens=0),
            task="embed",
            dimensions=dimensions,
            prompt_param=param,
            limit_param=param,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            truncation_side=self.truncation_side or "right",
            timeout_s=self.timeout,
            priority=self.priority or 0,
            stream=False,
        )


class EmbeddingRequest(VectorFields):
    """The body of POST /v1/embeddings."""

    input: Annotated[
        list[Prompt], PlainValidator(_inputs, json_schema_input_type=wire_prompts(MAX_INPUTS, _WireText))
    ] = Field(
        description=f"A string, a list of up to {MAX_INPUTS} strings, a list of token ids or a list of token id lists."
        " Token ids must be the model's own."
    )
    encoding_format: EncodingFormat | None = Field(
        None, description="`float`: numbers. `base64`: 32-bit floats in little-endian order. Default: `float`."
    )
    dimensions: int | None = Field(
        None, ge=1, le=MAX_DIMENSIONS, description="Numbers of each vector, for a model that can shorten its vectors."
    )

    def parsed(self) -> ParsedGeneration[EmbeddingForm]:
        """Return the valid body as plain data."""
        request = self.embedding(self.input, "input", dimensions=self.dimensions)
        form = EmbeddingForm(self.model, self.encoding_format or "float", len(self.input))
        return ParsedGeneration(request, form, self.ignored)


def floats_of(vector: bytes) -> array[float]:
    """Return the numbers of a vector."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def prompt_usage(usage: Usage) -> dict[str, int]:
    """Return the usage object of a request that generates nothing."""
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}


class VectorEncoder(Encoder):
    """An encoder of a request for vectors. Its response is no stream."""

    def encode(self, event: Event) -> Iterable[bytes]:
        return map(sse.json_event, map(dumps, self.feed(event)))


class EmbeddingEncoder(VectorEncoder):
    """Encode each vector at once, so that the whole response costs no long turn of the event loop."""

    def __init__(self, form: EmbeddingForm, request_id: str, fingerprint: str) -> None:
        self._form = form

    def feed(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Embedding(index, vector):
                return [{"index": index, "embedding": self._encoded(vector)}]
            case Finished(usage):
                return [{"model": self._form.model, "usage": prompt_usage(usage)}]
        return []

    def fold(self) -> Fold:
        return _EmbeddingFold(self._form.inputs)

    def _encoded(self, vector: bytes) -> RawJson:
        if self._form.encoding == "base64":
            return RawJson(base64.b64encode(vector).decode("ascii"))
        return RawJson(floats_of(vector).tolist())


class _EmbeddingFold(Fold):
    """The list of all vectors, in the order of the inputs."""

    def __init__(self, inputs: int) -> None:
        self._vectors: list[RawJson | None] = [None] * inputs
        self._last: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        if "index" in chunk:
            self._vectors[chunk["index"]] = chunk["embedding"]
        else:
            self._last = chunk

    def pieces(self) -> list[Piece]:
        items = (_Item(place, vector) for place, vector in enumerate(self._vectors) if vector is not None)
        return JsonObject({"object": "list", "data": JsonItems(items), **self._last}).pieces()


class _Item(Grown):
    """A vector in the list. Its JSON is not copied."""

    __slots__ = ("_place", "_vector")

    def __init__(self, place: int, vector: RawJson) -> None:
        self._place = place
        self._vector = vector

    def pieces(self) -> list[Piece]:
        return [b'{"object":"embedding","index":%d,"embedding":' % self._place, self._vector.data, b"}"]


class EmbeddingObject(BaseModel):
    """A vector: numbers, or their 32-bit floats in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class PromptUsage(BaseModel):
    """The tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: PromptUsage
