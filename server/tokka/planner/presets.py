"""Models known by name. Each has one file in `presets/` with the config.json fields that determine its size."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).parent.parent / "presets"


@dataclass(frozen=True, slots=True)
class Preset:
    """A model known by name, and its config."""

    name: str
    hub_id: str
    # A base model has no chat template: it completes text, and cannot chat without one.
    kind: Literal["base", "chat"]
    license: str
    # Sources of the figures.
    source: tuple[str, ...]
    # Published number of parameters, in billions.
    parameters_b: float
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_preset(file: Path) -> Preset:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content |= {"source": tuple(content["source"]), "notes": tuple(content.get("notes", ()))}
    return Preset(**content)


@functools.cache
def presets() -> Mapping[str, Preset]:
    """Return all presets, by name and by hub id in lower case."""
    found: dict[str, Preset] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        preset = read_preset(file)
        found[preset.name.lower()] = found[preset.hub_id.lower()] = preset
    return found


def find_preset(model: str | None) -> Preset | None:
    """Return the preset with this name or hub id, or None. A local folder of that name wins over a preset."""
    if model is None or os.path.exists(os.path.expanduser(model)):
        return None
    return presets().get(model.lower())
