"""Where the config.json of a model is found: a folder, a preset, the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokka.engine.hub import find_on_hub
from tokka.engine.presets import find_preset
from tokka.engine.vllm.weights import read_config, read_model_folder

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True, slots=True)
class Found:
    # What `tokka serve` takes.
    model: str
    # Where the config is from, in words.
    origin: str
    config: Mapping[str, Any]
    # What the weight files hold, if they are here.
    file_bytes: int | None = None
    notes: tuple[str, ...] = ()


def folder_of(model: str) -> Path | None:
    """Return the model as a folder, there or not, if that is what the word can only be; None for a name."""
    folder = Path(os.path.expanduser(model))
    is_path = os.path.exists(folder) or model.startswith((".", "/", "~")) or not _HUB_ID.match(model)
    return folder if is_path else None


def find_model(model: str) -> Found:
    """Return a model's config. Raises ConfigurationError where there is none, StartupError for damaged files."""
    if folder := folder_of(model):
        return _in_folder(model, folder)
    if preset := find_preset(model):
        notes = preset.notes
        if preset.kind == "base":
            notes += ("a base model: it completes text and cannot chat without --chat-template",)
        return Found(preset.name, f"preset of {preset.hub_id}, {preset.license}", preset.config, notes=notes)
    return Found(model, "config.json from the hub", find_on_hub(model).config)


def _in_folder(model: str, folder: Path) -> Found:
    if any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        files = read_model_folder(folder)
        return Found(model, f"{folder}/config.json and weight files", files.config, files.weight_bytes)
    return Found(model, f"{folder}/config.json", read_config(folder))
