"""haystack: an embedder of texts and one of documents."""

from __future__ import annotations

from facts import API, MODEL, report
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

common = {"model": MODEL, "api_base_url": API, "api_key": Secret.from_token("none"), "max_retries": 0}
text = OpenAITextEmbedder(**common).run("Hyvää päivää")
documents = OpenAIDocumentEmbedder(progress_bar=False, **common).run([Document(content="Hyvää päivää")])

report(
    query=text["embedding"],
    usage=text["meta"]["usage"],
    vectors=[document.embedding for document in documents["documents"]],
)
