"""The data of quarantine: suspects, deaths, trials and refusals. The rules are in `quarantine.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tokka.core import GenerateRequest
from tokka.errors import Quarantined, TenantHeld, TokkaError
from tokka.protocol.fingerprint import fingerprint_of

# Seconds of a trial. Beside a trial alone, no other request is admitted for so long. After it the trial is survived.
TRIAL_S = 5.0
# Seconds between two trials alone of one tenant.
PAUSE_S = 60.0


class Subject:
    """A request as a suspect: its tenant and its fingerprint, which is computed on first use."""

    __slots__ = ("_key", "tenant")

    def __init__(self, tenant: str, request: GenerateRequest) -> None:
        self.tenant = tenant
        # The request, until it has been hashed.
        self._key: GenerateRequest | tuple[str, bytes] = request

    @property
    def key(self) -> tuple[str, bytes]:
        if isinstance(self._key, GenerateRequest):
            self._key = (self.tenant, fingerprint_of(self._key))
        return self._key

    def forget_request(self) -> None:
        """Hash the request now, to keep only its hash."""
        _ = self.key


@dataclass(frozen=True, slots=True)
class EngineState:
    """The current engine: its number, the seconds it has served, and whether nothing runs or waits."""

    number: int
    served_s: float
    is_idle: bool


@dataclass(eq=False, slots=True)
class Trial:
    """Permission to run although the request, or its tenant, is held.

    `of_request`: the request is held, not its tenant. `is_alone`: no other request is admitted for TRIAL_S.
    `must_end`: the request ends with an error after TRIAL_S.
    """

    subject: Subject
    of_request: bool
    is_alone: bool
    must_end: bool
    engine: int = 0
    begun_s: float = math.inf

    @property
    def until_s(self) -> float:
        return self.begun_s + TRIAL_S

    def error(self) -> TokkaError:
        """Return the error of a request that has not proved harmless when its trial ends."""
        if self.of_request:
            return Quarantined(
                f"This request was running each time the engine died. It was tried for {TRIAL_S:g} s and did not "
                "finish, so the server ended it. Change it, or ask for a shorter answer."
            )
        return TenantHeld(
            "Your requests were running each time the engine died. This one was tried for "
            f"{TRIAL_S:g} s and had no token, so the server ended it. Send a shorter prompt.",
            TRIAL_S,
        )


@dataclass(frozen=True, slots=True)
class Held:
    """A refusal. `left_s`: seconds until the request may run as usual, or until its tenant may try again."""

    of_request: bool
    left_s: float

    def error(self) -> TokkaError:
        left = f"{math.ceil(self.left_s)} s"
        if self.of_request:
            return Quarantined(
                f"This request was running each time the engine died, so it is refused for another {left}. Change "
                "it, or ask the operator to look at the server's log."
            )
        return TenantHeld(
            "Your requests were running each time the engine died, so they are held back and run one at a "
            f"time. Retry in {left}. If one of them kills the engine, do not send it again.",
            self.left_s,
        )


@dataclass(slots=True)
class Suspicion:
    """The deaths at which a request or tenant was present, and whether it was ever the only one."""

    first_s: float
    deaths: int = 0
    was_alone: bool = False
    last_engine: int = 0
    last_s: float = 0.0
    # Tenants only: whether its requests need a trial, and whether they ever needed one.
    is_held: bool = False
    was_held: bool = False

    def pause_s(self, most_s: float, held_at: int) -> float:
        """Return the seconds that an engine must have served before the next trial."""
        steps = self.deaths - held_at + self.was_alone
        return 0.0 if steps <= 0 else min(PAUSE_S * 2 ** min(steps - 1, 30), most_s)


@dataclass(slots=True)
class Death:
    """A death whose reports are still coming in, one for each running request.

    `trials`: the trials that were undecided.
    """

    engine: int
    served_s: float
    at_s: float
    trials: tuple[Trial, ...]
    tenants: set[str] = field(default_factory=set)
    # The only running request; None if there were several.
    only: tuple[str, bytes] | None = None

    def add(self, subject: Subject) -> None:
        """Record a request that was running."""
        is_first = not self.tenants
        self.tenants.add(subject.tenant)
        if is_first:
            self.only = subject.key
        elif self.only != subject.key:
            self.only = None
