"""The weight files of a model folder: finds the files that the engine will load, and checks that they are complete."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokka.errors import StartupError
from tokka.planner.files import check_pointer, read_object

# Kinds of weight files in the engine's order of preference, each with the index that lists its tensors.
_KINDS = (
    ("consolidated*.safetensors", "consolidated.safetensors.index.json"),
    ("*.safetensors", "model.safetensors.index.json"),
    ("*.bin", "pytorch_model.bin.index.json"),
    ("*.pt", None),
    ("*.gguf", None),
)
# Load formats that are checked here. The engine's other formats have files of their own, or none.
_FORMATS = {
    "auto": _KINDS,
    "hf": _KINDS[1:],
    "bitsandbytes": _KINDS[1:],
    "safetensors": _KINDS[1:2],
    "fastsafetensors": _KINDS[1:2],
    "instanttensor": _KINDS[1:2],
    "mistral": _KINDS[:1],
    "npcache": _KINDS[2:3],
    "pt": _KINDS[3:4],
}
# Files of a training run, which the engine ignores too.
_NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
# As in model-00001-of-00002.safetensors.
_PART = re.compile(r"(.*\D)?(\d+)-of-(\d+)(\.\w+)?")
# Maximum files of one numbered set: a file name can claim any number.
_MOST_PARTS = 10_000
# Maximum bytes of a safetensors header. No model has a larger one; a damaged length must not cause a huge read.
_MAX_HEADER_BYTES = 100 << 20
_AGAIN = "download the model again"


def check_weights(folder: Path, load_format: str) -> int | None:
    """Check the model's weight files and return their bytes; None for a load format that is not checked.

    Raises StartupError, naming the file and the tensor, if weights are missing or damaged.
    """
    if load_format not in _FORMATS:
        return None
    weights = _find(folder, load_format)
    if missing := weights.missing:
        if (folder / missing[0]).exists():
            raise StartupError(f"{weights.index} does not list {missing[0]}, so it would not be loaded; {_AGAIN}")
        raise StartupError(f"{folder} lacks {missing[0]}, one of {len(missing)} missing weight files; {_AGAIN}")
    if not weights.names:
        raise StartupError(f"{folder} holds no weights (*.safetensors); {_AGAIN}")
    paths = [folder / name for name in weights.names]
    held = set().union(*map(_check_file, paths))
    if all(path.suffix == ".safetensors" for path in paths):
        for tensor, name in weights.map.items():
            if tensor not in held:
                raise StartupError(
                    f"{folder / name} does not hold the tensor {tensor} that {weights.index} lists; {_AGAIN}"
                )
    return sum(path.stat().st_size for path in paths)


def has_all_files(folder: Path, load_format: str) -> bool:
    """Return whether all weight files exist, without reading them. Raises StartupError for a damaged index."""
    if load_format not in _FORMATS:
        return True
    weights = _find(folder, load_format)
    return bool(weights.names) and not weights.missing


def absent_parts(names: Iterable[str]) -> list[str]:
    """Return the files missing from numbered sets, for example model-00002-of-00002.safetensors from a set of two."""
    sets: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        if found := _PART.fullmatch(name):
            prefix, number, total, suffix = found.groups(default="")
            sets.setdefault((prefix, total, suffix), {})[int(number)] = number
    absent = []
    for (prefix, total, suffix), numbers in sets.items():
        width = len(next(iter(numbers.values())))
        # Some tools count from 0.
        first = 0 if 0 in numbers else 1
        wanted = range(first, first + min(int(total), _MOST_PARTS))
        absent += [f"{prefix}{number:0{width}}-of-{total}{suffix}" for number in wanted if number not in numbers]
    return absent


@dataclass(frozen=True, slots=True)
class _Weights:
    # The existing files, in alphabetical order.
    names: list[str]
    index: Path | None
    # The file of each tensor, from the index.
    map: Mapping[str, str]

    @property
    def missing(self) -> list[str]:
        """Return the names of missing files: first the files that the index lists, then gaps in numbered sets."""
        listed = set(self.map.values())
        return list(dict.fromkeys([*sorted(listed - set(self.names)), *absent_parts(listed or self.names)]))


def _find(folder: Path, load_format: str) -> _Weights:
    """Return the weight files that the engine will load: the files that the index lists, if there is an index."""
    for pattern, index_name in _FORMATS[load_format]:
        index = folder / index_name if index_name else None
        weight_map = _read_index(index) if index and index.exists() else {}
        names = {path.name for path in folder.glob(pattern)} - _NOT_WEIGHTS
        if weight_map:
            names = {name for name in weight_map.values() if (folder / name).exists()}
        # An index without a single file is an incomplete download.
        if names or weight_map:
            return _Weights(sorted(names), index, weight_map)
    return _Weights([], None, {})


def _read_index(path: Path) -> dict[str, str]:
    """Return the name of each tensor's file."""
    weight_map = read_object(path).get("weight_map")
    is_map = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
    if not is_map or not weight_map:
        raise StartupError(f"{path} has no weight_map that names the file of each tensor; {_AGAIN}")
    return dict(weight_map)


def _check_file(path: Path) -> set[str]:
    """Return the names of the file's tensors; empty for a file without a readable header.

    A safetensors header implies the file's length. Raises StartupError for a damaged file.
    """
    check_pointer(path)
    if path.suffix != ".safetensors":
        return set()
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
            raise StartupError(f"{path} is damaged: {size} bytes do not hold its header; download it again")
        try:
            header = json.loads(file.read(header_bytes))
            ends = {name: int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise StartupError(f"{path} is damaged: its header is not readable; download it again") from None
    wanted = 8 + header_bytes + max(ends.values(), default=0)
    if size != wanted:
        raise StartupError(f"{path} is damaged: it has {size} bytes and should have {wanted}; download it again")
    return set(ends)
