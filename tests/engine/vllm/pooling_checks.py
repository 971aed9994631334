"""Both clients run a pooling model's requests, as vLLM's own front end does. Run by test_core_client.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.vllm.scripted_core import ScriptedCore, scripted_llm, until
from tests.events import Collector
from tokka.core import Embedding, GenerateRequest, Sampling, TextPrompt, TokensPrompt, Usage
from tokka.engine.vllm.embeddings import Embeddings, Ends
from tokka.errors import ContextLengthExceeded, EngineError, InvalidRequest, UnsupportedTask

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = [101, 7592, 102]
# A known version of vLLM, and one that is not known.
VERSIONS = ("0.32.0", "9.9.0")
OWN = {"request_id", "arrival_time"}


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[tuple[Any, ScriptedCore]]:
    from tokka.engine.vllm.start.embedded import embedded_embedding_model

    tasks = ("embed", "token_embed")
    async with scripted_llm(embedded_embedding_model(), folder, tasks, dtype="float32") as (llm, core):
        yield llm, core


async def embeddings_on(llm: Any, version: str) -> Embeddings:
    from tokka.engine.vllm.clients import client_of
    from tokka.engine.vllm.embeddings import embeddings_of

    client = client_of(llm, version)
    await client.ping()
    found, info = embeddings_of(llm, client, cpu=True)
    assert (info.tasks, info.dimensions, info.max_model_len) == (frozenset({"embed"}), 384, 256)
    return found


def ask(*prompts: Any, **fields: Any) -> GenerateRequest:
    given = tuple(TokensPrompt(prompt) if isinstance(prompt, list) else TextPrompt(prompt) for prompt in prompts)
    return GenerateRequest("embd-1", "m", given, Sampling(max_tokens=0), task="embed", prompt_param="input", **fields)


def vector(request: Any, value: float) -> Any:
    import torch
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    pooled = torch.full((4,), value, dtype=torch.float32)
    output = EngineCoreOutput(request.request_id, [], pooling_output=pooled, finish_reason=FinishReason.STOP)
    return EngineCoreOutputs(outputs=[output])


def fields_of(request: Any) -> dict[str, Any]:
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name not in OWN}
    params = request.pooling_params
    return {**fields, "pooling_params": {name: getattr(params, name) for name in params.__struct_fields__}}


async def test_request_equals_vllms_own(tmp_path: Path) -> None:
    from vllm import PoolingParams
    from vllm.inputs import tokens_input

    async with engine(tmp_path) as (llm, core):
        await llm.add_request("embd-1-0", tokens_input(PROMPT), PoolingParams(task="embed"))
        theirs = fields_of(core.added())
    (tmp_path / "ours").mkdir()
    async with engine(tmp_path / "ours") as (llm, core):
        found = await embeddings_on(llm, VERSIONS[0])
        running = asyncio.create_task((await found.prepare(ask(PROMPT))).run(Collector()))
        ours = fields_of(await core.added_later())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(await core.aborted_later()) == 1
    assert ours == theirs


@pytest.mark.parametrize("version", VERSIONS)
async def test_vectors_reach_the_sink(tmp_path: Path, version: str) -> None:
    async with engine(tmp_path) as (llm, core):
        found, sink = await embeddings_on(llm, version), Collector()
        prepared = await found.prepare(ask(*(PROMPT for _ in range(70))))
        assert (prepared.accepted.dimensions, len(prepared.accepted.prompt_token_ids)) == (384, 70)
        running = asyncio.create_task(prepared.run(sink))
        requests = [await core.added_later() for _ in range(64)]
        # No more than 64 inputs at once.
        assert core.received.empty()
        for place, request in enumerate(requests):
            core.send(vector(request, place))
        for place in range(64, 70):
            core.send(vector(await core.added_later(), place))
        assert await running == Usage(70 * 3, 0)
    events = {event.prompt_index: event.vector for event in sink.events if isinstance(event, Embedding)}
    assert {place: np.frombuffer(raw, "<f4").tolist() for place, raw in events.items()} == {
        place: [float(place)] * 4 for place in range(70)
    }


async def test_ended_input_ends_the_request(tmp_path: Path) -> None:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    async with engine(tmp_path) as (llm, core):
        found = await embeddings_on(llm, VERSIONS[0])
        running = asyncio.create_task((await found.prepare(ask(PROMPT, PROMPT))).run(Collector()))
        first, second = await core.added_later(), await core.added_later()
        ended = EngineCoreOutput(first.request_id, [], finish_reason=FinishReason.ERROR)
        core.send(EngineCoreOutputs(outputs=[ended]))
        with pytest.raises(EngineError, match="ended this request"):
            await running
        assert await core.aborted_later() == [second.request_id]
        await until(lambda: not found._client.unfinished)


async def test_inputs_are_checked_before_the_engine(tmp_path: Path) -> None:
    async with engine(tmp_path) as (llm, core):
        found = await embeddings_on(llm, VERSIONS[0])
        with pytest.raises(InvalidRequest, match="check_embedding_ctx_length") as refused:
            await found.prepare(ask([101, 30522]))
        assert refused.value.param == "input"
        with pytest.raises(ContextLengthExceeded, match="256 tokens"):
            await found.prepare(ask("word " * 400))
        with pytest.raises(InvalidRequest, match="cannot be shortened"):
            await found.prepare(ask("a", dimensions=64))
        with pytest.raises(UnsupportedTask):
            await found.prepare(GenerateRequest("x", "m", (TextPrompt("a"),), Sampling()))
        cut = await found.prepare(ask("word " * 400, truncate_prompt_tokens=-1, truncation_side="right"))
        (ids,) = cut.prompts
        assert (len(ids), ids[0], ids[-1]) == (256, 101, 102)
        assert core.received.empty()


def test_ends_are_read_off_the_tokenizer() -> None:
    class Tokenizer:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1, 50, 2, 3] if add_special_tokens else [50]}

    assert Ends.of(Tokenizer()) == Ends((1,), (2, 3))
