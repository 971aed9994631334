"""The resources that are free at a launcher."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokka.fleet.spec import Resources


@dataclass(frozen=True, slots=True)
class Room:
    """Free GPUs and bytes of memory: infinite without a limit, negative while more is promised than free."""

    gpus: float
    memory_bytes: float

    @classmethod
    def of(cls, capacity: Resources | None) -> Room:
        if capacity is None:
            return cls(math.inf, math.inf)
        return cls(capacity.gpus, math.inf if capacity.memory_bytes is None else capacity.memory_bytes)

    def fits(self, need: Resources) -> bool:
        # A need of zero fits even if other starts were promised more than there is.
        return need.gpus <= max(0, self.gpus) and (need.memory_bytes or 0) <= max(0, self.memory_bytes)

    def without(self, taken: Resources) -> Room:
        return Room(self.gpus - taken.gpus, self.memory_bytes - (taken.memory_bytes or 0))

    def plus(self, freed: Resources) -> Room:
        return Room(self.gpus + freed.gpus, self.memory_bytes + (freed.memory_bytes or 0))
