"""Sampling defaults from a model's generation_config.json. They are checked here, since vLLM does not check them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokka.errors import StartupError

# Minimum and maximum of each default, and whether it must be a whole number.
_BOUNDS: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0, math.inf, False),
    "top_p": (1e-6, 1, False),
    "top_k": (-1, math.inf, True),
    "min_p": (0, 1, False),
    "repetition_penalty": (1e-6, math.inf, False),
    "max_tokens": (1, math.inf, True),
}
# Names in the file, if they differ from vLLM's.
_FILE_NAMES = {"max_tokens": "max_new_tokens"}


def model_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for requests, from the values that vLLM read. Raises StartupError for an invalid value."""
    defaults = {name: found[name] for name in _BOUNDS if found.get(name) is not None}
    for name, value in defaults.items():
        least, most, is_whole = _BOUNDS[name]
        kinds = (int,) if is_whole else (int, float)
        if type(value) not in kinds or not least <= value <= most or value == math.inf:
            bounds = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
            raise StartupError(
                f"the model's generation_config.json has {_FILE_NAMES.get(name, name)} {value!r}; it must be a "
                f"{'whole ' if is_whole else ''}number {bounds}; correct it, or ignore the file with "
                "--engine-arg generation_config=vllm"
            )
    return defaults
