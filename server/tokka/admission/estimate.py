"""How long things take here, learnt from what has happened: pure, one number each."""

from __future__ import annotations

# Of a new value in the average; ten or twenty requests tell the trend.
_SHARE = 0.1
# One long prompt says little about the next short one.
_LARGEST_JUMP = 3.0


class Average:
    """An exponentially weighted mean that one outlier cannot move far. None until there is a first value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        if self.value is None:
            self.value = value
        else:
            self.value += _SHARE * (min(value, _LARGEST_JUMP * self.value) - self.value)

    def or_else(self, default: float) -> float:
        return default if self.value is None else self.value
