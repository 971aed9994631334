"""The tasks that a model can do. A request asks for one of them."""

from __future__ import annotations

from typing import Literal

# `generate`: continue a prompt. `embed`: turn each prompt into a vector.
Task = Literal["generate", "embed"]
