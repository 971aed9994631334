"""The client for unknown versions of vLLM brings the same outputs as the usual one. Run by test_core_client.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.engine.vllm.core_client_checks import PROMPT, params_of
from tests.engine.vllm.scripted_core import ScriptedCore, scripted_llm, small_model, until
from tokka.core import Sampling

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

UNKNOWN = "9.9.0"
SAMPLINGS = {
    "plain": Sampling(),
    "choices": Sampling(n=2, temperature=0.7),
    "logprobs": Sampling(logprobs=2, prompt_logprobs=2),
    "own logprob": Sampling(logprobs=0),
    "listed logprobs": Sampling(logprobs=2, logprob_token_ids=(31, 30)),
}


class Outputs:
    """Records everything that one request's receiver gets."""

    gathers_until_s = -math.inf

    def __init__(self) -> None:
        self.sequences: list[Outputs] = []
        self.got: list[Any] = []
        self.is_over = False
        self.errors: list[Any] = []

    def sequence(self, index: int, request: Any) -> Outputs:
        self.sequences.append(Outputs())
        return self.sequences[-1]

    def begin(self, cached_tokens: int, scores: Any) -> None:
        rows = None if scores is None else [np.asarray(column).round(4).tolist() for column in list(scores)[:3]]
        self.got.append((cached_tokens, rows))

    def take(self, token_ids: list[int], reason: str | None, stop: Any, scores: Any) -> bool:
        rows = None if scores is None else (scores.logprob_token_ids.tolist(), scores.logprobs.round(4).tolist())
        self.got.append((list(token_ids), reason, stop, rows))
        # As after a stop string, which vLLM does not know.
        self.is_over = reason is not None or 99 in token_ids
        return self.is_over

    async def have(self, entries: int) -> None:
        await until(lambda: all(len(one.got) >= entries for one in self.sequences))

    def put(self, output: object) -> None:
        self.errors.append(output)


def steps(ids: list[str], sampling: Sampling) -> list[Any]:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.metrics.stats import PrefillStats
    from vllm.v1.outputs import LogprobsLists, LogprobsTensors

    def scores(own: int) -> Any:
        if sampling.logprobs is None:
            return None
        others = list(sampling.logprob_token_ids) or [own, 8][: sampling.logprobs]
        table = np.array([[own, *others]])
        return LogprobsLists(table, np.where(table == own, -0.25, -2.0).astype(np.float32), np.array([1]))

    def prompt_scores() -> Any:
        if sampling.prompt_logprobs is None:
            return None
        import torch

        rows = [[token, token + 1, token + 2] for token in PROMPT[1:]]
        logprobs = torch.tensor([[-3.5, -0.5, -1.5]] * len(rows))
        return LogprobsTensors(torch.tensor(rows), logprobs, torch.tensor([7] * len(rows)))

    first = [
        EngineCoreOutput(
            one,
            [30],
            new_logprobs=scores(30),
            new_prompt_logprobs_tensors=prompt_scores(),
            prefill_stats=PrefillStats(len(PROMPT), 3, 2, 2),
        )
        for one in ids
    ]
    second = [EngineCoreOutput(one, [31], new_logprobs=scores(31)) for one in ids]
    last = [EngineCoreOutput(one, [32], scores(32), finish_reason=FinishReason.STOP, stop_reason=32) for one in ids]
    return [EngineCoreOutputs(outputs=outputs) for outputs in (first, second, last)]


async def received(llm: Any, core: ScriptedCore, version: str) -> dict[str, Any]:
    """Return what the receivers of each request get."""
    from tokka.engine.vllm.clients import client_of

    client: Any = client_of(llm, version)
    await client.ping()
    got = {}
    for kind, sampling in SAMPLINGS.items():
        outputs, params = Outputs(), params_of(sampling)
        await client.complete(params)
        client.add(kind, outputs, PROMPT, params)
        for number, step in enumerate(
            steps([(await core.added_later()).request_id for _ in range(params.n)], sampling)
        ):
            core.send(step)
            # One entry for the prompt, and one for each step.
            await outputs.have(number + 2)
        await until(lambda: not client.unfinished)
        got[kind] = [one.got for one in outputs.sequences]
    return got


async def test_public_client_brings_the_same_outputs(tmp_path: Path) -> None:
    from tokka.engine.vllm.clients import KNOWN_VERSIONS

    found = []
    for version in (KNOWN_VERSIONS[0], UNKNOWN):
        folder = tmp_path / version
        folder.mkdir()
        async with scripted_llm(small_model(), folder) as (llm, core):
            found.append(await received(llm, core, version))
    usual, public = found
    assert public == usual


async def test_public_client_is_chosen_with_a_warning(tmp_path: Path) -> None:
    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, _):
        with capture_logs() as lines:
            client_of(llm, UNKNOWN)
        assert [(line["event"], line["log_level"], line["client"]) for line in lines] == [
            ("engine_client_chosen", "warning", "public")
        ]


async def test_public_client_aborts_and_passes_errors_on(tmp_path: Path) -> None:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(small_model(), tmp_path) as (llm, core):
        client: Any = client_of(llm, UNKNOWN)
        left, stopped, failed, invalid = (Outputs() for _ in range(4))
        ids = client.add("left", left, PROMPT, params_of(Sampling()))
        id_left = (await core.added_later()).request_id
        client.add("stopped", stopped, PROMPT, params_of(Sampling()))
        id_stopped = (await core.added_later()).request_id
        client.drop(ids)
        assert await core.aborted_later() == [id_left]
        core.send(EngineCoreOutputs(outputs=[EngineCoreOutput(id_stopped, [99])]))
        assert await core.aborted_later() == [id_stopped]
        assert stopped.sequences[0].is_over
        client.add("invalid", invalid, PROMPT, params_of(Sampling(logprobs=21)))
        await until(lambda: invalid.sequences[0].errors)
        assert "logprobs" in str(invalid.sequences[0].errors[0])
        client.add("failed", failed, PROMPT, params_of(Sampling()))
        await core.added_later()
        # Never began.
        client.drop(client.add("at once", Outputs(), PROMPT, params_of(Sampling())))
        assert client.stats.latest[0].scheduler.num_running_reqs == 2
        core.die()
        await until(lambda: failed.sequences[0].errors)
        await until(lambda: client.is_dead and not client.unfinished)
