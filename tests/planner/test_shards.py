"""Weight files must agree: the tensors in their headers, the index, and the numbers in their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.folders import POINTER, write_index, write_model, write_shard
from tokka.errors import StartupError
from tokka.planner.model_folder import read_model_folder
from tokka.planner.shards import absent_parts, has_all_files

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model in two shards, with an index."""
    folder = write_model(tmp_path / "model")
    write_shard(folder / FIRST, ["a", "b"])
    write_shard(folder / SECOND, ["c"])
    write_index(folder, {"a": FIRST, "b": FIRST, "c": SECOND})
    return folder


def reason(folder: Path, load_format: str = "auto") -> str:
    with pytest.raises(StartupError) as failure:
        read_model_folder(folder, load_format)
    assert failure.value.exit_code == 3
    return str(failure.value)


def test_whole_shards_are_measured(folder: Path) -> None:
    sizes = [(folder / name).stat().st_size for name in (FIRST, SECOND)]
    assert read_model_folder(folder).weight_bytes == sum(sizes)
    (folder / "model.safetensors.index.json").unlink()
    assert read_model_folder(folder).weight_bytes == sum(sizes)


def test_tensor_of_the_index_that_no_shard_holds_is_named(folder: Path) -> None:
    write_index(folder, {"a": FIRST, "b": FIRST, "c": SECOND, "lm_head.weight": SECOND})
    assert f"{SECOND} does not hold the tensor lm_head.weight" in reason(folder)


def test_tensor_in_another_shard_than_the_index_says_is_served(folder: Path) -> None:
    write_index(folder, {"a": FIRST, "b": SECOND, "c": SECOND})
    assert read_model_folder(folder).weight_bytes


@pytest.mark.parametrize(("kept", "lost"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_shard_of_two_without_index_names_the_other(folder: Path, kept: str, lost: str) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / lost).unlink()
    assert f"lacks {lost}, one of 1 missing" in reason(folder)


def test_index_that_lists_one_shard_of_two_is_refused(folder: Path) -> None:
    write_index(folder, {"a": FIRST, "b": FIRST})
    assert f"does not list {SECOND}" in reason(folder)
    (folder / SECOND).unlink()
    assert f"lacks {SECOND}" in reason(folder)


def test_pickled_part_of_two_without_the_other_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK")
    assert "lacks pytorch_model-00002-of-00002.bin" in reason(folder)
    write_index(folder, {"a": "pytorch_model-00003-of-00003.bin"}, "pytorch_model.bin.index.json")
    assert "lacks pytorch_model-00003-of-00003.bin, one of 3 missing" in reason(folder)


def test_consolidated_weights_are_looked_at_before_others(folder: Path) -> None:
    # The engine prefers consolidated weights.
    write_shard(folder / "consolidated-00001-of-00002.safetensors", ["a"])
    assert "lacks consolidated-00002-of-00002.safetensors" in reason(folder)
    assert read_model_folder(folder, "hf").weight_bytes


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_index_without_a_map_is_refused(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json has no weight_map" in reason(folder)


@pytest.mark.parametrize("name", [FIRST, "tokenizer.json", "config.json", "model.safetensors.index.json"])
def test_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert f"{name} is a Git LFS pointer" in reason(folder)
    assert "git lfs pull" in reason(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_broken_text_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"temperature": ')
    assert f"{name} cannot be read: not JSON" in reason(folder)


def test_dummy_weights_need_no_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    assert "holds no weights" in reason(folder)
    assert read_model_folder(folder, "dummy").weight_bytes is None


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (["model.safetensors"], []),
        (["a-00000-of-00002.bin", "a-00001-of-00002.bin"], []),
        (["a-00000-of-00002.bin"], ["a-00001-of-00002.bin"]),
        (["a-1-of-3.gguf"], ["a-2-of-3.gguf", "a-3-of-3.gguf"]),
        (["a-00001-of-00001.bin", "b-00002-of-00002.bin"], ["b-00001-of-00002.bin"]),
    ],
)
def test_absent_parts_are_found_by_their_numbers(names: list[str], absent: list[str]) -> None:
    assert absent_parts(names) == absent


def test_number_without_measure_does_not_hold_the_start() -> None:
    assert len(absent_parts([f"model-00001-of-{10**18}.safetensors"])) < 10_000


def test_has_all_files_detects_an_incomplete_download(folder: Path) -> None:
    assert has_all_files(folder, "auto")
    (folder / FIRST).unlink()
    assert not has_all_files(folder, "auto")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    assert not has_all_files(folder, "auto")


def test_unreadable_file_is_named(folder: Path) -> None:
    # A folder instead of a file mode: the tests run as root, and root can read files of any mode.
    (folder / "generation_config.json").mkdir()
    assert "generation_config.json cannot be read: Is a directory" in reason(folder)
