"""Hold back requests and tenants that seem to kill the engine, before the process gives up.

The suspicion grows in three steps:

1. After one death, the running requests are suspects. All of them may run again: one death is chance.
2. A request that ran in two deaths is held (400). A suspect is a tenant and a fingerprint, so the equal request of
   another tenant is another suspect. A request that completes is cleared.
3. A tenant that was present at three deaths in a row is held (503), whatever it sends. The second and the third must be
   quick: the engine had served for less than a minute. If `--max-quick-deaths` is below four, one death less than that
   number is enough.

A held request, and a request of a held tenant, run in **trials** only. The server has one trial at a time.

- A suspect that was ever the only one at a death is tried alone, and only if nothing runs or waits in admission.
  Requests that arrive during the trial wait in the queue, for 5 s at most. Then a held request ends with an error. A
  request of a held tenant continues beside the others if it has had a token; otherwise it ends with an error, too.
- If others were present at each death, they are as likely the cause. A held request is then tried as soon as the engine
  is idle, and continues after 5 s if it has had a token. A held tenant is tried at once, beside others. All its
  requests may run meanwhile, and each that completes ends the hold.
- A death during a trial is blamed on the suspects on trial. So the next death shows which tenant was the cause.

A request ends the hold if it completes in its trial, or has had a token and survives 5 s. The deaths are not forgotten:
the next one brings a tenant's hold back.

A tenant gets one trial alone in 60 s, so it delays others for 5 s of 60 at most. A suspect that was ever the only one
at a death has to wait until the engine has served for 60 s. Each further death doubles this time, up to half of
`hold_s`. So a death in a trial alone does not count for `--max-quick-deaths`.

Step 3 is off where it would do harm: for the only tenant of a server, and when the engine is at fault. The engine is at
fault if two held tenants were each alone at a death and no request has completed since. Then the process gives up as it
would without this module.

A suspect is forgotten `hold_s` after its last death, and each table is bounded. Pure: time and engine are arguments.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from tokka.admission.suspects import PAUSE_S, TRIAL_S, Death, EngineState, Held, Subject, Suspicion, Trial

# Deaths after which a request is held.
_DEATHS = 2
# Quick deaths after which a tenant is held.
_STRIKES = 3
# Seconds an engine has served below which its death is quick.
_QUICK_S = 60.0
# Maximum entries of each table. The oldest are dropped first.
_MOST = 10_000

K = TypeVar("K")


def strikes_before(max_quick_deaths: int) -> int:
    """Return the quick deaths after which a tenant is held: below `max_quick_deaths`, but at least 1."""
    return max(1, min(_STRIKES, max_quick_deaths - 1))


class Quarantine:
    """Decides whether a request runs as usual, runs on trial or is refused.

    `hold_s`: seconds that a suspicion lasts; 0 turns quarantine off. `strikes`: the result of `strikes_before`.
    `has_others` returns whether the server may have more than one tenant.
    """

    def __init__(
        self, hold_s: float, *, strikes: int = _STRIKES, has_others: Callable[[], bool] = lambda: False
    ) -> None:
        self._hold_s = hold_s
        self._strikes = strikes
        self._has_others = has_others
        self._requests: OrderedDict[tuple[str, bytes], Suspicion] = OrderedDict()
        self._tenants: OrderedDict[str, Suspicion] = OrderedDict()
        self._death: Death | None = None
        # Number of the last engine whose death is closed.
        self._closed = 0
        # By tenant: undecided trials, and the time at which the tenant's last trial began.
        self._trials: dict[str, Trial] = {}
        self._tried_s: OrderedDict[str, float] = OrderedDict()
        self._completed_s = -math.inf

    # -- events

    def ran_at_death(self, subject: Subject, engine: int, served_s: float, now_s: float) -> None:
        """Record that the request was running when this engine died. `served_s`: seconds the engine had served."""
        if not self._hold_s:
            return
        suspicion = self._suspicion(self._requests, subject.key, now_s)
        if engine > suspicion.last_engine:
            suspicion.deaths += 1
            suspicion.last_engine = engine
        if self._death is not None and engine > self._death.engine:
            self._close_death()
        if self._death is None and engine > self._closed:
            on_trial = tuple(trial for trial in self._trials.values() if trial.engine == engine)
            self._death = Death(engine, served_s, now_s, on_trial)
        # The request of a slow reader may report a death that is closed already.
        if self._death is not None and engine == self._death.engine:
            self._death.add(subject)

    def completed(self, subject: Subject, now_s: float) -> None:
        """Record that the engine has survived the request."""
        self._completed_s = now_s
        if self._requests:
            self._requests.pop(subject.key, None)
        trial = self._trials.get(subject.tenant)
        if trial is not None and not trial.is_alone:
            self.survived(trial)

    def begin(self, trial: Trial, engine: int, now_s: float) -> None:
        """Record that the engine begins to work on a request on trial."""
        trial.engine, trial.begun_s = engine, now_s
        tenant = trial.subject.tenant
        self._trials[tenant] = trial
        self._tried_s[tenant] = now_s
        self._tried_s.move_to_end(tenant)
        if len(self._tried_s) > _MOST:
            self._tried_s.popitem(last=False)

    def survived(self, trial: Trial) -> None:
        """End the hold: the request has completed, or has had a token and run for TRIAL_S."""
        self.over(trial)
        if trial.of_request:
            self._requests.pop(trial.subject.key, None)
        elif (tenant := self._tenants.get(trial.subject.tenant)) is not None:
            tenant.is_held = False

    def over(self, trial: Trial) -> None:
        """Record that a trial has ended, with or without a result."""
        if self._trials.get(trial.subject.tenant) is trial:
            del self._trials[trial.subject.tenant]

    # -- decisions

    def judge(self, subject: Subject, engine: EngineState, now_s: float) -> Trial | Held | None:
        """Return None if the request may run as usual, a trial if it may run in one, or a refusal.

        A trial counts from `begin` on; offering one has no effect.
        """
        # Without deaths, do not hash requests. (design 7.1)
        if not self._requests and not self._tenants:
            return None
        self._catch_up(engine.number, now_s)
        request = self._requests.get(subject.key)
        # design 7.2
        if request is not None and request.deaths >= _DEATHS:
            trial = Trial(subject, of_request=True, is_alone=True, must_end=request.was_alone)
            return self._trial_or_held(trial, request, _DEATHS, engine, now_s)
        tenant = self._tenants.get(subject.tenant)
        # design 7.3
        if tenant is None or not tenant.is_held or not self._has_others():
            return None
        own = self._trials.get(subject.tenant)
        # design 7.4
        if own is not None and not own.is_alone and now_s < own.until_s:
            return None
        trial = Trial(subject, of_request=False, is_alone=tenant.was_alone, must_end=False)
        return self._trial_or_held(trial, tenant, self._strikes, engine, now_s)

    def _trial_or_held(
        self, trial: Trial, suspicion: Suspicion, held_at: int, engine: EngineState, now_s: float
    ) -> Trial | Held:
        pause_s = suspicion.pause_s(self._hold_s / 2, held_at)
        tried_s = self._tried_s.get(trial.subject.tenant, -math.inf)
        wait_s = max(
            pause_s - engine.served_s,
            # A client that leaves each trial before its end must not get the next one at once.
            tried_s + max(pause_s, PAUSE_S if trial.is_alone else 2 * TRIAL_S) - now_s,
            *(other.until_s - now_s for other in self._trials.values()),
        )
        # design 7.5
        if wait_s <= 0 and (engine.is_idle or not trial.is_alone):
            return trial
        left_s = suspicion.last_s + self._hold_s - now_s
        return Held(trial.of_request, left_s if trial.of_request else min(left_s, max(TRIAL_S, wait_s)))

    # -- the tables

    def _suspicion(self, table: OrderedDict[K, Suspicion], key: K, now_s: float) -> Suspicion:
        """Return the entry of a suspect that was present at a death now, and move it to the end of the table."""
        known = table.get(key)
        if known is None or now_s - known.last_s >= self._hold_s:
            known = table[key] = Suspicion(now_s)
        known.last_s = now_s
        table.move_to_end(key)
        if len(table) > _MOST:
            table.popitem(last=False)
        return known

    def _catch_up(self, engine: int, now_s: float) -> None:
        """Close the last death once there is another engine, as all reports are in. Drop expired entries."""
        if self._death is not None and engine > self._death.engine:
            self._close_death()
        for table in (self._requests, self._tenants):
            _forget(table, now_s - self._hold_s)
        for tenant, trial in list(self._trials.items()):
            if trial.engine != engine:
                del self._trials[tenant]

    def _close_death(self) -> None:
        """Blame the death on the tenants on trial, or without a trial on all that were present."""
        death, self._death = self._death, None
        if death is None:
            return
        self._closed = death.engine
        if death.only is not None and death.only in self._requests:
            self._requests[death.only].was_alone = True
        blamed = death.tenants
        if death.trials:
            # The trial of a held request does not count against its tenant, which did nothing new.
            blamed = {trial.subject.tenant for trial in death.trials if not trial.of_request}
        for tenant in blamed:
            self._blame(tenant, death, is_alone=len(blamed) == 1)

    def _blame(self, tenant: str, death: Death, *, is_alone: bool) -> None:
        known = self._tenants.get(tenant)
        if known is not None and death.served_s >= _QUICK_S and not known.was_held:
            # The engine served well in between, so earlier deaths do not count.
            del self._tenants[tenant]
        suspicion = self._suspicion(self._tenants, tenant, death.at_s)
        suspicion.deaths += 1
        suspicion.was_alone = suspicion.was_alone or is_alone
        if suspicion.deaths >= self._strikes:
            suspicion.is_held = suspicion.was_held = True
            if self._is_the_engines_fault():
                self._tenants.clear()

    def _is_the_engines_fault(self) -> bool:
        alone = [tenant for tenant in self._tenants.values() if tenant.is_held and tenant.was_alone]
        return len(alone) > 1 and self._completed_s < min(tenant.first_s for tenant in alone)


def _forget(table: OrderedDict[Any, Suspicion], until_s: float) -> None:
    while table and next(iter(table.values())).last_s <= until_s:
        table.popitem(last=False)
