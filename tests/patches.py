"""Patches modules of the real program and its engine processes, for faults that cannot be caused from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

_SITECUSTOMIZE = """
import importlib.abc, importlib.util, json, sys

PATCHES = json.loads({patches!r})

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        code = PATCHES.pop(name)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            exec(code, module.__dict__)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
exec({first!r})
"""


def patched(folder: Path, patches: Mapping[str, str], first: str = "") -> dict[str, str]:
    """Return an environment in which each named module runs the given code at its end, in every Python process.

    `first`: code that each process runs at its start.
    """
    folder.mkdir(exist_ok=True)
    text = _SITECUSTOMIZE.format(patches=json.dumps(dict(patches)), first=first)
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
