"""Tokka's client speaks with an engine process as vLLM's own client does. Run by test_core_client.py.

The engine process is scripted (scripted_core.py). For the same requests, what it receives from vLLM's public
`AsyncLLM.add_request` is compared with what it receives from Tokka.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.engine.vllm.scripted_core import ScriptedCore, scripted_llm, small_model, until
from tokka.core import Constraint, Sampling
from tokka.engine.vllm.params import sampling_params
from tokka.engine.vllm.params_cache import ParamsCache

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = [504, 3575, 282, 4649, 314]
GRAMMAR = "start: /[a-z]+/"
# Each differs from a plain request in what vLLM's front end computes for it.
SAMPLINGS = {
    "plain": Sampling(),
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, seed=7),
    "choices": Sampling(n=3, temperature=0.7),
    "seeded choices": Sampling(n=3, temperature=0.7, seed=2**40),
    "penalties": Sampling(presence_penalty=0.5, frequency_penalty=-0.5, repetition_penalty=1.1),
    "stop": Sampling(stop=("\n", "end"), stop_token_ids=(5, 6, 5), min_tokens=3),
    "no end": Sampling(ignore_eos=True, min_tokens=2, stop_token_ids=(9,)),
    "logprobs": Sampling(logprobs=3, prompt_logprobs=2),
    "listed logprobs": Sampling(logprobs=2, logprob_token_ids=(10, 11)),
    "logit bias": Sampling(logit_bias={5: 1.5, 6: -100.0}, allowed_token_ids=(5, 6, 7)),
    "bad words": Sampling(bad_words=("cat",)),
    "hidden": Sampling(skip_special_tokens=False, spaces_between_special_tokens=False),
    "constraint": Sampling(constraint=Constraint("regex", "[a-z]+", "")),
    "constrained choices": Sampling(n=2, temperature=0.7, constraint=Constraint("regex", "[a-z]+", "")),
}
# Values of the request beside its parameters.
GIVEN: dict[str, dict[str, Any]] = {
    "sampled": {"cache_salt": "of a tenant"},
    "constraint": {"reasoning_ended": False},
    "constrained choices": {"reasoning_ended": True, "cache_salt": "another"},
}
# A value of each field that is not its default, and the fields that the parameters do not depend on.
OTHER_VALUES: dict[str, Any] = {
    "n": 2,
    "min_tokens": 1,
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "repetition_penalty": 1.5,
    "seed": 0,
    "logit_bias": {1: 1.0},
    "logprobs": 0,
    "logprob_token_ids": (1,),
    "prompt_logprobs": 0,
    "stop_token_ids": (1,),
    "ignore_eos": True,
    "bad_words": ("a",),
    "allowed_token_ids": (1,),
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "thinking_token_budget": 1,
    "constraint": Constraint("regex", "a", ""),
}
NOT_IN_PARAMS = ("max_tokens", "default_max_tokens", "stop", "include_stop", "is_budget_optional")
# Fields with another value in each request: the id has a random or a serial end.
OWN = {"request_id", "arrival_time"}


def with_ends(model: Path, folder: Path) -> Path:
    """Return a model folder whose generation config names several end tokens."""
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = folder / "generation_config.json"
    config.unlink(missing_ok=True)
    config.write_text('{"eos_token_id": [2, 0, 17]}')
    return folder


class Outputs:
    """The receiver of a request's outputs, in place of PromptOutputs and its SequenceOutputs."""

    gathers_until_s = -math.inf

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.errors: list[Any] = []

    def sequence(self, index: int, request: Any) -> Outputs:
        return self

    def begin(self, cached_tokens: int, scores: Any) -> None:
        pass

    def take(self, token_ids: list[int], reason: str | None, stop: Any, scores: Any) -> bool:
        self.tokens += token_ids
        return reason is not None

    def put(self, output: object) -> None:
        self.errors.append(output)

    async def error(self) -> Any:
        await until(lambda: self.errors)
        return self.errors[0]


def params_of(sampling: Sampling, defaults: dict[str, Any] | None = None) -> Any:
    return sampling_params(
        sampling,
        16,
        echo=False,
        defaults=defaults or {},
        grammar=GRAMMAR if sampling.constraint else None,
        bad_words=[[5, 6], [7]] if sampling.bad_words else None,
    )


def fields_of(request: Any) -> dict[str, Any]:
    """Return the fields of a received request, with those of its parameters."""
    params = request.sampling_params
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name not in OWN}
    fields["sampling_params"] = {name: getattr(params, name) for name in params.__struct_fields__}
    # The kind of id, without the part that differs.
    head, _, tail = request.request_id.rpartition("-")
    return {**fields, "request_id": (head, len(tail))}


async def theirs(llm: Any, core: ScriptedCore, kind: str, prompts: int) -> list[dict[str, Any]]:
    """Run a request through vLLM's own front end; return what its engine has received."""
    from vllm.inputs import tokens_input

    sampling, given = SAMPLINGS[kind], GIVEN.get(kind, {})
    params = params_of(sampling)
    for at in range(prompts):
        prompt = tokens_input(PROMPT, cache_salt=given.get("cache_salt"))
        await llm.add_request(f"cmpl-1-{at}", prompt, params, reasoning_ended=given.get("reasoning_ended"))
    return [fields_of(core.added()) for _ in range(prompts * params.n)]


async def ours(
    client: Any, core: ScriptedCore, kind: str, prompts: int, kept: ParamsCache | None = None
) -> list[dict[str, Any]]:
    """Run the same request through Tokka's client. `kept`: with its parameters, if it keeps them."""
    sampling = SAMPLINGS[kind]
    params = params_of(sampling)
    await client.complete(params)
    if kept is not None:
        params.max_tokens += 1
        kept.put(params, sampling, echo=False)
        params.max_tokens -= 1
        params = kept.get(sampling, params.max_tokens, echo=False) or params
    for at in range(prompts):
        client.add(f"cmpl-1-{at}", Outputs(), PROMPT, params, **GIVEN.get(kind, {}))
    return [fields_of(core.added()) for _ in range(prompts * params.n)]


async def all_received(model: Path, folders: list[Path]) -> dict[str, tuple[Any, Any, Any]]:
    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(model, folders[0]) as (llm, core):
        # vLLM would compile the constraint, which is Tokka's and already compiled.
        llm.input_processor.structured_outputs_config = None
        from_vllm = [await theirs(llm, core, kind, prompts=2) for kind in SAMPLINGS]
    async with scripted_llm(model, folders[1]) as (llm, core):
        client = client_of(llm)
        from_tokka = [await ours(client, core, kind, prompts=2) for kind in SAMPLINGS]
        kept = ParamsCache()
        again = [await ours(client, core, kind, 2, kept) for _ in range(2) for kind in SAMPLINGS][len(SAMPLINGS) :]
    return dict(zip(SAMPLINGS, zip(from_vllm, from_tokka, again, strict=True), strict=True))


@pytest.fixture(scope="module", params=["one end token", "several end tokens"])
def received(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, Any, Any]]:
    """What engines receive of each request: from vLLM's front end, and from Tokka."""
    model = small_model()
    if request.param == "several end tokens":
        model = with_ends(model, tmp_path_factory.mktemp("model"))
    return asyncio.run(all_received(model, [tmp_path_factory.mktemp("core") for _ in range(2)]))


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_requests_have_the_fields_of_vllms_own(received: dict[str, tuple[Any, Any, Any]], kind: str) -> None:
    theirs, ours, again = received[kind]
    assert ours == theirs
    assert again == theirs


def test_kept_params_share_nothing_that_can_change() -> None:
    kept, common = ParamsCache(), []
    for kind, sampling in SAMPLINGS.items():
        kept.put(params_of(sampling), sampling, echo=False)
        one, other = kept.get(sampling, 3, echo=False), kept.get(sampling, 4, echo=False)
        if one is None or other is None:
            continue
        common.append(kind)
        assert (one.max_tokens, other.max_tokens) == (3, 4)
        for name in one.__struct_fields__:
            value = getattr(one, name)
            assert isinstance(value, int | float | str | None | Enum) or value is not getattr(other, name), name
    assert common == ["plain", "greedy", "choices", "penalties", "logprobs", "hidden"]


def test_kept_params_depend_on_all_that_params_depend_on() -> None:
    kept = ParamsCache()
    kept.put(params_of(Sampling()), Sampling(), echo=False)
    assert kept.get(Sampling(), 1, echo=True) is None
    assert {*OTHER_VALUES, *NOT_IN_PARAMS} == {field.name for field in fields(Sampling)}
    for name, value in OTHER_VALUES.items():
        assert kept.get(replace(Sampling(), **{name: value}), 1, echo=False) is None, name


def outputs_of(*ids: str, tokens: list[int]) -> list[Any]:
    from vllm.v1.engine import EngineCoreOutput

    return [EngineCoreOutput(one, tokens) for one in ids]


async def begun(client: Any, **given: Any) -> tuple[Outputs, list[str]]:
    """Add a request; return its receiver and the ids of its sequences."""
    sampling = Sampling(n=given.pop("n", 1), temperature=0.7)
    receiver, params = Outputs(), params_of(sampling)
    await client.complete(params)
    return receiver, client.add("cmpl-1-0", receiver, PROMPT, params, **given)


async def test_steps_arrive_and_dropped_requests_are_aborted(tmp_path: Path) -> None:
    from vllm.v1.engine import EngineCoreOutputs

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, core):
        client: Any = client_of(llm)
        # The watchdog calls before the first request.
        await client.ping()
        one, one_ids = await begun(client)
        two, two_ids = await begun(client, n=2)
        assert len({*one_ids, *two_ids}) == 3
        assert [core.added().request_id for _ in range(3)] == one_ids + two_ids
        core.send(EngineCoreOutputs(outputs=outputs_of(*one_ids, *two_ids, tokens=[72, 105])))
        await until(lambda: len(two.tokens) == 4)
        assert (one.tokens, two.tokens) == ([72, 105], [72, 105, 72, 105])
        client.drop(two_ids)
        assert core.aborted() == two_ids
        # The engine no longer works on it.
        client.drop(two_ids)
        client.abort(one_ids)
        assert core.aborted() == one_ids


async def test_end_of_the_engine_ends_requests_and_calls(tmp_path: Path) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, core):
        client: Any = client_of(llm)
        receiver, _ = await begun(client)
        core.answers = False
        call = asyncio.create_task(client.ping())
        await until(lambda: llm.engine_core.utility_results)
        assert not client.is_dead
        core.die()
        assert isinstance(await receiver.error(), EngineDeadError)
        # vLLM's own client would let it wait for ever.
        with pytest.raises(EngineDeadError):
            await call
        assert client.is_dead
        with pytest.raises(EngineDeadError):
            await begun(client)


async def test_a_message_that_cannot_be_read_ends_the_client(tmp_path: Path) -> None:
    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, core):
        client: Any = client_of(llm)
        receiver, _ = await begun(client)
        core.send({"not": "a step"})
        assert "Expected `array`" in str(await receiver.error())
        assert client.is_dead


async def test_closing_vllm_ends_requests(tmp_path: Path) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, _):
        client: Any = client_of(llm)
        receiver, _ids = await begun(client)
        # vLLM's thread does the same after the end of an engine process.
        await asyncio.to_thread(llm.engine_core.shutdown)
        assert isinstance(await receiver.error(), EngineDeadError)
        assert client.is_dead


async def test_a_request_that_cannot_be_sent_leaves_nothing(tmp_path: Path) -> None:
    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, _):
        client: Any = client_of(llm)
        await begun(client)
        with pytest.raises(TypeError, match="not serializable"):
            await begun(client, cache_salt=object())
        assert client.steps.get_num_unfinished_requests() == 1
        assert not client.is_dead


async def test_limits_of_vllm_count_the_requests(tmp_path: Path) -> None:
    from vllm.exceptions import GracefulHTTPError

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path, max_num_queued_reqs=2) as (llm, _):
        client: Any = client_of(llm)
        await begun(client, n=2)
        with pytest.raises(GracefulHTTPError):
            await begun(client)


async def test_invalid_parameters_are_refused(tmp_path: Path) -> None:
    from vllm.exceptions import VLLMValidationError

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, _):
        client: Any = client_of(llm)
        for sampling in (Sampling(logprobs=21), Sampling(thinking_token_budget=5), Sampling(logit_bias={10**6: 1.0})):
            with pytest.raises(VLLMValidationError):
                await client.complete(params_of(sampling))


async def test_copies_share_requests_and_get_their_own_aborts(tmp_path: Path) -> None:
    from vllm.v1.engine import EngineCoreOutputs

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path, data_parallel_size=2) as (llm, core):
        client: Any = client_of(llm)
        added = [await begun(client) for _ in range(4)]
        ids = [one for _, its_ids in added for one in its_ids]
        assert {core.added().request_id for _ in ids} == set(ids)
        assert sorted(core.receivers) == [0, 0, 1, 1]
        core.send(EngineCoreOutputs(outputs=outputs_of(ids[0], tokens=[5]), finished_requests={ids[0]}))
        await until(lambda: added[0][0].tokens)
        # The engine has ended the first one, and vLLM counts three.
        assert sum(llm.engine_core.engine_inflight.values()) == 3
        client.drop(ids)
        assert sorted(core.aborted() + core.aborted()) == sorted(ids[1:])
        assert sorted(core.receivers[4:]) == [0, 1]
