"""The holdings of a request until its end: a replica, memory, its admission, a trial."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.admission.controller import Slot
from tokka.admission.memory import Share
from tokka.admission.quarantine import Quarantine
from tokka.admission.suspects import Trial
from tokka.core import GenerateRequest
from tokka.engine.replicas import Lease, Replicas


@dataclass(slots=True)
class Holdings:
    """Everything that a request gives back at its end, as far as it has it. `take_replica` comes first."""

    quarantine: Quarantine
    replicas: Replicas
    _lease: Lease | None = None
    # Memory for the response.
    share: Share | None = None
    slot: Slot | None = None
    trial: Trial | None = None

    @property
    def lease(self) -> Lease:
        assert self._lease is not None
        return self._lease

    def take_replica(self, request: GenerateRequest) -> Lease:
        """Hold the replica that suits the request best now, instead of the one so far. Raises ModelStarting."""
        if self._lease is not None:
            self._lease.release()
        self._lease = self.replicas.lease(request, is_admitted=self.slot is not None)
        return self._lease

    def release(self) -> None:
        """Give everything back. Safe to call twice."""
        try:
            if self.slot is not None:
                self.slot.close()
            if self.trial is not None:
                self.quarantine.over(self.trial)
        finally:
            if self._lease is not None:
                self._lease.release()
            if self.share is not None:
                self.share.release()
