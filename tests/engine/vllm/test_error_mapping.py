"""The engine's errors in Tokka's words: failed requests, failed starts, and deaths of the engine."""

from __future__ import annotations

import pytest

from tokka.core import Constraint
from tokka.engine.supervision.exits import exit_words
from tokka.engine.vllm.error_mapping import EndedByEngine, cause_of, death_of, load_failure, translate
from tokka.errors import EngineError


def test_error_names_the_constraint_that_ended_the_request() -> None:
    # The constraint of a strict function is not in a field of the sampling.
    error = translate(EndedByEngine("error"), Constraint("calls", "{}", "tools"))
    assert isinstance(error, EngineError)
    assert error.param == "tools"
    assert "'tools' became too complex" in error.message
    assert error.headers() == {"x-should-retry": "false"}


def test_without_one_it_is_the_engines_own_reason() -> None:
    error = translate(EndedByEngine("error"))
    assert isinstance(error, EngineError)
    assert (error.param, error.headers()) == (None, {})


WRAPPER = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


def cause(error: BaseException, last_error: str | None = None, **exits: int) -> str:
    return cause_of(error, exits=exits, last_error=last_error, out_of_memory=False)


def test_error_in_hand_comes_first() -> None:
    assert cause(KeyError("stop")) == "KeyError: 'stop'"
    assert (
        cause(KeyError("stop"), "no DeepGEMM")
        == "KeyError: 'stop'; the last error in the engine's own log: no DeepGEMM"
    )
    assert cause(ValueError("no such field\nmore"), EngineCore=-9) == "no such field"


def test_error_of_another_process_is_the_cause_of_a_wrapper() -> None:
    assert cause(WRAPPER, "the shard has no tensor 'x'", EngineCore=1) == "the shard has no tensor 'x'"


def test_cause_prefers_the_signal_to_an_earlier_error() -> None:
    told = cause(WRAPPER, "no DeepGEMM", EngineCore=-9)
    assert told.startswith("its process EngineCore was killed by signal 9 (SIGKILL), most likely because the memory")
    assert "--max-model-len" in told
    assert "DeepGEMM" not in told


def test_cause_names_the_killed_worker_and_not_vllms_own_signal() -> None:
    assert cause(WRAPPER, None, **{"VllmWorker-1": -11, "EngineCore": -15}).startswith(
        "its process VllmWorker-1 was killed by signal 11 (SIGSEGV)"
    )


def test_cause_is_the_exit_code_when_nothing_was_printed() -> None:
    assert "EngineCore ended with exit code 1 and printed no error" in cause(WRAPPER, EngineCore=1)
    assert "its process ended and printed no error" in cause(WRAPPER)


def test_death_of_a_ready_engine_names_the_signal() -> None:
    exits = {"EngineCore": -9}
    told = death_of("VLLM::EngineCore (pid 7)", exits, "no DeepGEMM", out_of_memory=True)
    assert told.startswith("the process EngineCore was killed by signal 9 (SIGKILL), by the kernel because the memory")
    assert "DeepGEMM" not in told


def test_death_without_a_signal_quotes_the_last_error() -> None:
    told = death_of(None, {"EngineCore": 1}, "CUDA error", out_of_memory=False)
    assert told == "the engine stopped; the last error in the engine's own log: CUDA error"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (-7, "was killed by signal 7 (SIGBUS), most likely because /dev/shm is full"),
        (-4, "was killed by signal 4 (SIGILL), most likely because this processor"),
        (-40, "was killed by signal 40"),
    ],
)
def test_exit_code_has_its_cause_and_remedy(code: int, words: str) -> None:
    assert exit_words(code).startswith(words)


@pytest.mark.parametrize(
    "cause",
    [
        "If the model is a custom model, consider setting `trust_remote_code=True` in LLM",
        "Loading this model requires you to execute custom code contained in the model repository",
    ],
)
def test_load_failure_names_the_option_for_custom_code(cause: str) -> None:
    told = load_failure("/models/own", cause, None)
    assert told.exit_code == 2
    assert "--engine-arg trust_remote_code=true" in str(told)
