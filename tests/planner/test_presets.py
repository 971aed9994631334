"""Every preset can be planned, and its figures are the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokka.planner.gpus import find_gpu
from tokka.planner.layout import lay_out
from tokka.planner.model_config import ModelConfig
from tokka.planner.parameters import count_parameters
from tokka.planner.presets import FOLDER, find_preset, read_preset
from tokka.planner.sizing import measure

FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_preset_has_a_source_and_the_published_number_of_parameters(file: Path) -> None:
    preset = read_preset(file)
    assert file.stem == preset.name.lower()
    assert preset.source
    assert all(source.startswith("https://") for source in preset.source)
    assert preset.kind in ("base", "chat")
    parameters = count_parameters(ModelConfig.of(preset.config))
    assert parameters is not None
    assert parameters.total / 1e9 == pytest.approx(preset.parameters_b, rel=0.005)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_preset_fits_a_node_of_large_devices(file: Path) -> None:
    gpu = find_gpu("MI300X")
    assert gpu is not None
    assert lay_out(measure(ModelConfig.of(read_preset(file).config)), gpu.memory_bytes, 8).recommended is not None


@pytest.mark.parametrize("name", ["Poro-34B-chat", "poro-34b-CHAT", "LumiOpen/Poro-34B-chat"])
def test_preset_is_found_by_name_and_hub_id(name: str) -> None:
    preset = find_preset(name)
    assert preset is not None
    assert preset.hub_id == "LumiOpen/Poro-34B-chat"


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Poro-34B").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_preset("Poro-34B") is None


@pytest.mark.parametrize("name", [None, "no-such-model"])
def test_other_names_are_no_preset(name: str | None) -> None:
    assert find_preset(name) is None
