"""Checks a model folder before the engine starts. A missing or damaged file is named at once, in one line."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from tokka.errors import ConfigurationError, StartupError
from tokka.planner.files import check_pointer, read_json, read_object
from tokka.planner.hub import find_on_hub
from tokka.planner.model_config import ModelConfig
from tokka.planner.shards import check_weights, has_all_files
from tokka.suggestions import did_you_mean

# In the engine's order: it reads the first file that exists.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's config, and the bytes of its weight files."""

    config: ModelConfig
    # None if the weights are not on this machine, or in a format that is not checked.
    weight_bytes: int | None


def read_model_folder(folder: Path, load_format: str = "auto") -> ModelFiles:
    """Read the folder's config and check all other files. `load_format`: the engine argument of this name.

    Raises ConfigurationError for a folder that is not a model, StartupError for a missing or damaged file.
    """
    config = read_config(folder)
    check_text_files(folder)
    return ModelFiles(config, check_weights(folder, load_format))


def read_hub_model(model: str, revision: str | None, load_format: str) -> ModelFiles:
    """Read a hub model's config, and check its other files if the hub's cache holds all of them.

    Raises the errors of `read_model_folder`, and ConfigurationError for an id that the hub does not have.
    """
    found = find_on_hub(model, revision)
    config = ModelConfig.of(found.config)
    if found.snapshot is None:
        return ModelFiles(config, None)
    if found.is_offline:
        check_text_files(found.snapshot)
    elif not has_all_files(found.snapshot, load_format):
        # The engine downloads the rest.
        return ModelFiles(config, None)
    return ModelFiles(config, check_weights(found.snapshot, load_format))


def read_config(folder: Path) -> ModelConfig:
    """Return the model's config. Raises the errors of `read_model_folder`."""
    # Not a ConfigurationError, here and below: the folder may appear when its file system is mounted later.
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise ConfigurationError(f"{folder} is not a folder; give the folder that holds config.json")
        is_empty = next(folder.iterdir(), None) is None
    except FileNotFoundError:
        raise StartupError(
            f"the model folder {folder} does not exist; give an existing folder or a hub id, and check that its file "
            f"system is mounted{did_you_mean(folder.name, _folders_beside(folder))}"
        ) from None
    except OSError as error:
        raise StartupError(
            f"the model folder {folder} cannot be read: {error.strerror}; check its owner and mode"
        ) from None
    if is_empty:
        raise StartupError(f"the model folder {folder} is empty; check that its file system is mounted")
    if not (folder / "config.json").exists():
        raise ConfigurationError(f"{folder} has no config.json: it is not a model folder")
    return ModelConfig.of(read_object(folder / "config.json"))


def _folders_beside(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return []


def check_text_files(folder: Path) -> None:
    """Raise StartupError for a missing or damaged tokenizer, or a damaged generation_config.json."""
    found = next((folder / name for name in _TOKENIZER_FILES if (folder / name).exists()), None)
    if found is None:
        raise StartupError(
            f"{folder} has no tokenizer (one of {', '.join(_TOKENIZER_FILES)}); download the model again"
        )
    if found.suffix == ".json":
        read_json(found)
    else:
        check_pointer(found)
    if (tokenizer_config := folder / "tokenizer_config.json").exists():
        read_object(tokenizer_config)
    if (generation_config := folder / "generation_config.json").exists():
        read_object(generation_config)
