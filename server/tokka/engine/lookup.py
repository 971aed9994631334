"""Where the config.json of a model is found: a folder, a preset, the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokka.engine.presets import find_preset
from tokka.engine.vllm.weights import read_model_folder
from tokka.errors import ConfigurationError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
# People wait for this; the library's own download tries for half a minute.
_HUB_TIMEOUT_S = 10


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
    folder = Path(model).expanduser()
    is_path = folder.exists() or model.startswith((".", "/", "~")) or not _HUB_ID.match(model)
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
    return Found(model, "config.json from the hub", hub_config(model))


def hub_config(model: str) -> Mapping[str, Any]:
    """Return the config.json of a hub id, from the hub's cache on this machine or from the hub."""
    try:
        content = json.loads(_hub_file(model))
    except Exception as error:
        # Its errors are many, and all mean the same to who asked.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigurationError(
            f"{model} is no folder and no preset, and its config.json cannot be had from the hub ({reason});"
            " download it and give its folder"
        ) from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"the config.json of {model} on the hub is no JSON object")
    return content


def _hub_file(model: str) -> str:
    from huggingface_hub import get_session, get_token, hf_hub_url, try_to_load_from_cache  # noqa: PLC0415

    cached = try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return Path(cached).read_text()
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = get_session().get(
        hf_hub_url(model, "config.json"), headers=headers, timeout=_HUB_TIMEOUT_S, follow_redirects=True
    )
    answer.raise_for_status()
    return answer.text


def _in_folder(model: str, folder: Path) -> Found:
    if any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        config, file_bytes = read_model_folder(folder)
        return Found(model, f"{folder}/config.json and weight files", config, file_bytes)
    try:
        content = json.loads((folder / "config.json").read_text())
    except OSError as error:
        raise ConfigurationError(f"{folder}/config.json cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{folder}/config.json is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{folder}/config.json must hold a JSON object")
    return Found(model, f"{folder}/config.json", content)
