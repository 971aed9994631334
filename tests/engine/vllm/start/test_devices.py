"""`--tensor-parallel-size auto`, with simulated devices."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from structlog.testing import capture_logs

from tokka.engine.vllm.start import arguments, devices
from tokka.engine.vllm.start.arguments import VllmOptions, engine_arguments
from tokka.errors import ConfigurationError, StartupError
from tokka.planner.lookup import find_model
from tokka.planner.model_folder import ModelFiles
from tokka.settings import Settings

GCD = 68_702_699_520


def chosen(model: str, *, cpu: bool = False, **settings: Any) -> int:
    options = VllmOptions.from_settings(Settings(model=model, **{"tensor_parallel_size": "auto", **settings}))
    files = ModelFiles(find_model(model).config, None)
    size = engine_arguments(options, str(options.model), files, cpu=cpu)["tensor_parallel_size"]
    assert isinstance(size, int)
    return size


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "visible_devices", lambda: [GCD] * 8)


@pytest.mark.usefixtures("node")
def test_poro_34b_takes_four_of_a_node_and_the_log_says_why() -> None:
    with capture_logs() as logs:
        assert chosen("Poro-34B-chat") == 4
    (line,) = logs
    assert line["event"] == "tensor_parallel_size_chosen"
    assert line["devices"] == 8
    assert "2 would fit" in line["reason"]


@pytest.mark.usefixtures("node")
def test_copies_share_the_devices() -> None:
    assert chosen("Poro-34B", data_parallel_size=4) == 2
    with pytest.raises(StartupError, match="8 devices are visible for 9 copies"):
        chosen("Poro-34B", data_parallel_size=9)


@pytest.mark.usefixtures("node")
def test_a_given_cache_or_share_of_memory_counts() -> None:
    assert chosen("Poro-34B", kv_cache_memory="8GiB") == 2
    assert chosen("Poro-34B", engine_arg=["gpu_memory_utilization=0.6"]) == 4
    assert chosen("Poro-34B", engine_arg=["gpu_memory_utilization=0.5"]) == 8


@pytest.mark.usefixtures("node")
def test_too_large_model_is_an_error_with_numbers_and_a_remedy() -> None:
    with pytest.raises(StartupError, match=r"756\.0 GiB.*lower --max-model-len"):
        chosen("Llama-3.1-405B-Instruct")


@pytest.mark.usefixtures("node")
def test_stages_of_a_pipeline_need_a_number() -> None:
    with pytest.raises(ConfigurationError, match="give a number"):
        chosen("Poro-34B", pipeline_parallel_size=2)


def test_a_cpu_gets_one_and_says_so() -> None:
    with capture_logs() as logs:
        assert chosen("Poro-34B", cpu=True, kv_cache_memory="1GiB") == 1
    assert logs[0]["reason"] == "the engine runs on a CPU"


def test_a_preset_is_served_from_the_hub_under_its_own_name() -> None:
    options = VllmOptions.from_settings(Settings(model="Poro-34B-chat"))
    assert (options.model, options.served_name) == ("LumiOpen/Poro-34B-chat", "Poro-34B-chat")


def test_a_split_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="valid sizes are 1, 2, 4, 8"):
        chosen("Poro-34B", tensor_parallel_size=3)


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (subprocess.CompletedProcess([], 0, "a warning\n[1, 2]\n", ""), None),
        (subprocess.CalledProcessError(1, [], "", "Traceback\nRuntimeError: no driver\n"), "no driver"),
        (subprocess.CompletedProcess([], 0, "", ""), "give a number"),
    ],
)
def test_devices_are_asked_in_a_process_of_their_own(
    monkeypatch: pytest.MonkeyPatch, done: Any, reason: str | None
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(subprocess, "run", run)
    if reason is None:
        assert devices.visible_devices() == [1, 2]
    else:
        with pytest.raises(StartupError, match=reason):
            devices.visible_devices()


@pytest.mark.parametrize(("value", "size"), [("4", 4), ("auto", "auto"), (8, 8)])
def test_the_setting_is_a_number_or_auto(value: Any, size: Any) -> None:
    assert Settings(tensor_parallel_size=value).tensor_parallel_size == size
