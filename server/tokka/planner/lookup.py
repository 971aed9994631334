"""Finds a model's config.json in a folder, in a preset, or on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tokka.planner.hub import find_on_hub
from tokka.planner.model_config import ModelConfig
from tokka.planner.model_folder import read_config, read_model_folder
from tokka.planner.presets import find_preset

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model's config and its origin."""

    # The model as `tokka serve` takes it.
    model: str
    # Origin of the config, for people.
    origin: str
    config: ModelConfig
    # Bytes of the weights in the local files; None without local files.
    file_bytes: int | None = None
    notes: tuple[str, ...] = ()


def folder_of(model: str) -> Path | None:
    """Return the folder if `model` can only be a path, existing or not; None for a name."""
    folder = Path(os.path.expanduser(model))
    is_path = os.path.exists(folder) or model.startswith((".", "/", "~")) or not _HUB_ID.match(model)
    return folder if is_path else None


def find_model(model: str) -> FoundModel:
    """Return a model's config. Blocks for up to 10 seconds if it must ask the hub.

    Raises ConfigurationError if the model is not found, StartupError for damaged files or a failed lookup.
    """
    if folder := folder_of(model):
        return _in_folder(model, folder)
    if preset := find_preset(model):
        notes = preset.notes
        if preset.kind == "base":
            notes += ("this is a base model: it completes text, and cannot chat without --chat-template",)
        return FoundModel(
            preset.name, f"preset of {preset.hub_id}, {preset.license}", ModelConfig.of(preset.config), notes=notes
        )
    return FoundModel(model, "config.json from the hub", ModelConfig.of(find_on_hub(model).config))


def _in_folder(model: str, folder: Path) -> FoundModel:
    if any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        files = read_model_folder(folder)
        return FoundModel(model, f"{folder}/config.json and weight files", files.config, files.weight_bytes)
    return FoundModel(model, f"{folder}/config.json", read_config(folder))
