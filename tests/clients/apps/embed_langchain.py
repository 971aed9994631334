"""langchain-openai: embeddings of texts, and of the token ids that the package sends by default."""

from __future__ import annotations

import openai
import tiktoken
from facts import API, MODEL, error_of, report
from langchain_openai import OpenAIEmbeddings

TEXTS = ["Hyvää päivää", "Good day", "Hyvää päivää"]


def encoding_of(_: str) -> tiktoken.Encoding:
    """Return an encoding with ids as large as OpenAI's. The package would download theirs."""
    ranks = {bytes([byte]): 10_000 + byte for byte in range(256)}
    return tiktoken.Encoding("stand-in", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})


for name in ("encoding_for_model", "get_encoding"):
    setattr(tiktoken, name, encoding_of)
common = {"model": MODEL, "base_url": API, "api_key": "none", "max_retries": 0}
texts = OpenAIEmbeddings(check_embedding_ctx_length=False, **common)
vectors = texts.embed_documents(TEXTS)
try:
    OpenAIEmbeddings(**common).embed_documents(TEXTS)
except openai.BadRequestError as caught:
    error = error_of(caught)

report(vectors=vectors, query=texts.embed_query(TEXTS[0]), error=error)
