"""A step of the engine reaches each of its requests, whatever happens to the others. Run by test_steps.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

# What torch and vLLM say of themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


class Sequence:
    """Takes tokens as told, and notes what it got."""

    def __init__(self, ends_at: int | None = None, fails: bool = False) -> None:
        self.got: list[Any] = []
        self._ends_at = ends_at
        self._fails = fails

    def begin(self, cached_tokens: int, prompt_logprobs: Any) -> None:
        self.got.append("begin")

    def take(self, token_ids: list[int], reason: str | None, stop: Any, scores: Any) -> bool:
        if self._fails:
            raise ValueError("a fault of ours")
        self.got += token_ids
        return reason is not None or token_ids[-1] == self._ends_at

    def put(self, output: object) -> None:
        self.got.append(output)


def steps_of(**sequences: Sequence) -> Any:
    from vllm.v1.engine.output_processor import RequestState

    from tokka.engine.vllm.steps import StepOutputs

    steps = StepOutputs(None, log_stats=False)
    for name, sequence in sequences.items():
        scores = SimpleNamespace(pop_prompt_logprobs=lambda: None, logprobs=None)
        steps.request_states[name] = RequestState(
            request_id=name,
            external_req_id=f"{name}-0",
            parent_req=None,
            request_index=0,
            lora_request=None,
            output_kind=None,
            prompt=None,
            prompt_token_ids=[1],
            prompt_embeds=None,
            logprobs_processor=scores,
            detokenizer=None,
            max_tokens_param=None,
            arrival_time=0.0,
            queue=sequence,
            log_stats=False,
            stream_interval=1,
        )
        steps.external_req_ids[f"{name}-0"].append(name)
    return steps


def step(**tokens: int) -> list[Any]:
    from vllm.v1.engine import EngineCoreOutput

    return [EngineCoreOutput(request_id=name, new_token_ids=[token]) for name, token in tokens.items()]


def test_each_request_gets_its_tokens_and_one_that_has_ended_is_stopped() -> None:
    one, other = Sequence(ends_at=6), Sequence()
    steps = steps_of(one=one, other=other)
    assert steps.process_outputs(step(one=5, other=7)).reqs_to_abort == []
    assert steps.process_outputs(step(one=6, other=8)).reqs_to_abort == ["one"]
    # What the engine has computed meanwhile is nobody's.
    assert steps.process_outputs(step(one=9, other=9)).reqs_to_abort == []
    assert (one.got, other.got) == (["begin", 5, 6], ["begin", 7, 8, 9])
    assert not steps.forget("one-0")
    assert steps.forget("other-0")


def test_a_fault_in_one_request_ends_that_one_alone() -> None:
    broken, well = Sequence(fails=True), Sequence()
    steps = steps_of(broken=broken, well=well)
    assert steps.process_outputs(step(broken=1, well=2)).reqs_to_abort == ["broken"]
    assert steps.process_outputs(step(broken=3, well=4)).reqs_to_abort == []
    assert isinstance(broken.got[-1], ValueError)
    assert well.got == ["begin", 2, 4]
