"""Decides when to restart a dead engine, and when to give up. Does no I/O."""

from __future__ import annotations

# Seconds of service after which an engine's death is unrelated to the previous one.
QUICK_S = 15.0
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0


class RestartPolicy:
    """Counts quick deaths in a row. The first restart is immediate; each later one waits twice as long."""

    def __init__(self, max_quick_deaths: int) -> None:
        self._max_quick_deaths = max_quick_deaths
        self._quick_deaths = 0

    @property
    def quick_deaths(self) -> int:
        return self._quick_deaths

    def delay_s(self, served_s: float) -> float | None:
        """Return the seconds to wait before the restart, or None to give up.

        `served_s`: seconds from the engine's readiness to its death; 0 if it was never ready.
        """
        self._quick_deaths = self._quick_deaths + 1 if served_s < QUICK_S else 0
        if self._quick_deaths >= self._max_quick_deaths:
            return None
        if self._quick_deaths <= 1:
            return 0.0
        delay_s: float = _FIRST_DELAY_S * 2 ** (self._quick_deaths - 2)
        return min(_LONGEST_DELAY_S, delay_s)
