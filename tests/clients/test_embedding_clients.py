"""Clients of embeddings and rerank: openai and cohere in this process, LangChain and haystack in their environments."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from tests.clients.checks import APPS, CLIENTS, DOCUMENT, QUIET, RUN_S
from tests.clients.conftest import FakeServer

TEXTS = ["Hyvää päivää", "Good day", "Hyvää päivää"]


@pytest.fixture
def client(server: FakeServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=20, max_retries=0) as client:
        yield client


def test_openai_reads_base64_and_numbers_alike(client: OpenAI, server: FakeServer) -> None:
    # By default the package asks for base64.
    packed = client.embeddings.create(model=server.model, input=TEXTS)
    plain = client.embeddings.create(model=server.model, input=TEXTS, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1, 2]
    assert [one.embedding for one in packed.data] == [one.embedding for one in plain.data]
    assert packed.data[0].embedding == packed.data[2].embedding != packed.data[1].embedding
    assert packed.usage.prompt_tokens == sum(len(text.encode()) for text in TEXTS)
    assert (packed.object, packed.model) == ("list", server.model)


def test_openai_sends_dimensions_and_token_ids(client: OpenAI, server: FakeServer) -> None:
    (one,) = client.embeddings.create(model=server.model, input=list(b"Hei"), dimensions=8).data
    assert len(one.embedding) == 8
    with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False") as refused:
        client.embeddings.create(model=server.model, input=[[15339, 1917]])
    assert refused.value.param == "input[0]"


async def test_async_openai_embeds(server: FakeServer) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=20) as client:
        answer = await client.embeddings.create(model=server.model, input="Hei")
    assert len(answer.data[0].embedding) == 32


@pytest.fixture
def connections() -> Iterator[httpx.Client]:
    """The connections of cohere's clients, which do not close their own."""
    with httpx.Client(timeout=20) as connections:
        yield connections


def test_cohere_reranks(server: FakeServer, connections: httpx.Client) -> None:
    client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=connections)
    answer = client.rerank(model=server.model, query=TEXTS[0], documents=["Bread", TEXTS[0], "Hyvää"], top_n=2)
    assert [one.index for one in answer.results] == [1, 2]
    assert answer.results[0].relevance_score == pytest.approx(1, abs=1e-6)
    assert answer.meta is not None
    assert answer.meta.tokens is not None
    assert answer.meta.tokens.input_tokens == sum(
        len(text.encode()) for text in (*TEXTS[:1], "Bread", TEXTS[0], "Hyvää")
    )


def test_cohere_of_version_1_gets_documents(server: FakeServer, connections: httpx.Client) -> None:
    client = cohere.Client(api_key="none", base_url=server.url, httpx_client=connections)
    answer = client.rerank(model=server.model, query="a", documents=["a", {"text": "b"}], return_documents=True)
    assert [one.document and one.document.text for one in answer.results] == ["a", "b"]


def test_cohere_raises_its_own_error(server: FakeServer, connections: httpx.Client) -> None:
    client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=connections)
    with pytest.raises(cohere.NotFoundError, match="does not exist"):
        client.rerank(model="nope", query="a", documents=["b"])


def facts_of(check: str, server: FakeServer, home: Path) -> dict[str, Any]:
    """Run a script of `apps` in its client's environment; return the facts that it prints."""
    client = next(one for one in CLIENTS if one.check == check)
    if not client.is_installed:
        pytest.skip(f"{client.stamp.parent.name} is not installed: run scripts/clients")
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TOKKA_URL": server.url, "TOKKA_MODEL": server.model, **QUIET}
    done = subprocess.run(
        [str(client.stamp.parent / "bin" / "python"), str(APPS / f"embed_{check}.py")],
        env={**env, "TOKKA_CHECK": f"embed-{check}"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.clients
@pytest.mark.timeout(RUN_S + 30)
@pytest.mark.parametrize("check", ["langchain", "haystack"])
def test_framework_embeds_as_openai_does(check: str, client: OpenAI, server: FakeServer, tmp_path: Path) -> None:
    facts = facts_of(check, server, tmp_path)
    (own,) = client.embeddings.create(model=server.model, input=TEXTS[0]).data
    assert facts["query"] == own.embedding
    assert facts["vectors"][0] == own.embedding
    assert facts["contacted"] == ["127.0.0.1"]
    if check == "langchain":
        name, message = facts["error"]
        assert name == "BadRequestError"
        assert "check_embedding_ctx_length=False" in message


def test_document_names_the_clients_versions() -> None:
    text = DOCUMENT.read_text()
    assert f"| cohere | {cohere.__version__} |" in text
