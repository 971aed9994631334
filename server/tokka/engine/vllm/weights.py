"""A look at a model folder before the engine starts: what is missing or damaged is named at once, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokka.errors import ConfigurationError, StartupError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
# Larger headers exist in no model; a damaged length must not make us read the whole file.
_MAX_HEADER_BYTES = 100 << 20


def read_model_folder(folder: Path) -> tuple[dict[str, Any], int]:
    """Return the model's config and the bytes of its weights.

    Raises ConfigurationError for a folder that is no model, StartupError for files that are damaged.
    """
    if not folder.exists():
        raise ConfigurationError(f"the model folder {folder} does not exist; give an existing folder or a hub id")
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder; give the folder that holds config.json")
    config = _read_object(folder / "config.json")
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise StartupError(
            f"{folder} has no tokenizer (one of {', '.join(_TOKENIZER_FILES)}); download the model again"
        )
    return config, sum(_check_shard(shard) for shard in _shards(folder))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{path.parent} has no {path.name}: it is not a model folder") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        raise StartupError(f"{path} cannot be read: {reason}; download the model again") from None
    if not isinstance(content, dict):
        raise StartupError(f"{path} must hold a JSON object; download the model again")
    return content


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        shards = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")) or sorted(folder.glob("*.gguf"))
        if not shards:
            raise StartupError(f"{folder} holds no weights (*.safetensors); download the model again")
        return shards
    names = sorted(set(_read_object(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise StartupError(
            f"{folder} lacks {missing[0]}, one of {len(missing)} missing of {len(names)} weight files; "
            "download the model again"
        )
    return [folder / name for name in names]


def _check_shard(path: Path) -> int:
    """Return the file's size. A safetensors file says how long it must be: a shorter one was cut."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
            raise StartupError(f"{path} is damaged: {size} bytes do not hold its header; download it again")
        try:
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise StartupError(f"{path} is damaged: its header is not readable; download it again") from None
    wanted = 8 + header_bytes + max(ends, default=0)
    if size != wanted:
        raise StartupError(f"{path} is damaged: it has {size} bytes and should have {wanted}; download it again")
    return size
