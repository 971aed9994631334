"""Requests that seem to kill the engine. A default client sends a failed request twice more: each would be an outage.

Pure: the time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tokka.core import GenerateRequest
from tokka.protocol.fingerprint import fingerprint_of

# Deaths of the engine with the same request running: one is chance, as every request that ran is a suspect.
_DEATHS = 2
# As many as could ever run at two deaths; the oldest go first.
_MAX_SUSPECTS = 10_000


@dataclass(slots=True)
class _Suspect:
    # Numbers of the engines that died with it.
    engines: set[int]
    since_s: float


class Quarantine:
    """Remembers what ran when an engine died. `hold_s`: for how long; 0 turns it off."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()

    def ran_at_death(self, request: GenerateRequest, engine: int, now_s: float) -> None:
        """Note that the request was running when this engine died."""
        key = fingerprint_of(request)
        suspect = self._suspects.setdefault(key, _Suspect(set(), now_s))
        suspect.engines.add(engine)
        suspect.since_s = now_s
        self._suspects.move_to_end(key)
        if len(self._suspects) > _MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def completed(self, request: GenerateRequest) -> None:
        """A request that an engine has survived is no suspect."""
        if self._suspects:
            self._suspects.pop(fingerprint_of(request), None)

    def holds_for_s(self, request: GenerateRequest, now_s: float) -> float:
        """Return for how many seconds more the request is to be refused; 0 if it may run."""
        # The usual case must cost nothing: no hash while nothing has died.
        if not self._suspects:
            return 0.0
        key = fingerprint_of(request)
        suspect = self._suspects.get(key)
        if suspect is None:
            return 0.0
        left_s = suspect.since_s + self._hold_s - now_s
        if left_s <= 0:
            del self._suspects[key]
            return 0.0
        return left_s if len(suspect.engines) >= _DEATHS else 0.0
