"""Quarantine: it holds the requests and tenants that seem to kill the engine, and no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import tokka.admission.quarantine
from tokka.admission.quarantine import Quarantine, strikes_before
from tokka.admission.suspects import PAUSE_S, TRIAL_S, EngineState, Held, Subject, Trial
from tokka.core import GenerateRequest, Sampling, TextPrompt

HOLD_S = 600.0


def subject(text: str = "kill", tenant: str = "a", **fields: Any) -> Subject:
    request = GenerateRequest("id", "m", (TextPrompt(text),), Sampling())
    return Subject(tenant, replace(request, **fields))


class Server:
    """A server's consecutive engines, as quarantine sees them. Only `die` and the tests advance the time."""

    def __init__(self, hold_s: float = HOLD_S, *, strikes: int = 3, has_others: bool = True) -> None:
        self.quarantine = Quarantine(hold_s, strikes=strikes, has_others=lambda: has_others)
        self.now_s = 1000.0
        self.engine = 1
        self.ready_s = self.now_s

    def die(self, *running: Subject, served_s: float = 1.0) -> None:
        """Serve for at least `served_s`, die with these requests running, and make the next engine ready at once."""
        self.now_s = max(self.now_s, self.ready_s + served_s)
        for one in running:
            self.quarantine.ran_at_death(one, self.engine, self.now_s - self.ready_s, self.now_s)
        self.engine += 1
        self.ready_s = self.now_s

    def judge(self, one: Subject, *, is_idle: bool = True) -> Trial | Held | None:
        return self.quarantine.judge(one, EngineState(self.engine, self.now_s - self.ready_s, is_idle), self.now_s)

    def is_free(self, one: Subject) -> bool:
        return self.judge(one) is None

    def trial(self, one: Subject) -> Trial:
        """Begin this request's trial."""
        trial = self.judge(one)
        assert isinstance(trial, Trial)
        self.quarantine.begin(trial, self.engine, self.now_s)
        return trial

    def held(self, one: Subject, *, is_idle: bool = True) -> Held:
        held = self.judge(one, is_idle=is_idle)
        assert isinstance(held, Held)
        return held

    def attack(self, *beside: Subject, tenant: str = "a", deaths: int = 3) -> None:
        """Die `deaths` times, each time of a different request of this tenant."""
        for _ in range(deaths):
            self.die(subject(f"variant {self.engine}", tenant), *beside)


# -- requests


def test_one_death_is_chance() -> None:
    server = Server()
    server.die(subject())
    assert server.is_free(subject())


def test_twice_in_one_death_is_one_death() -> None:
    server = Server()
    server.die(*[subject()] * 5)
    assert server.is_free(subject())


def test_request_of_two_deaths_is_held() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    server.now_s += 10
    assert server.held(subject()) == Held(of_request=True, left_s=HOLD_S - 10)
    # Other requests of the same tenant are free.
    assert server.is_free(subject("hello"))
    assert server.is_free(subject(sampling=Sampling(n=2)))


def test_request_is_the_same_by_another_id() -> None:
    server = Server()
    server.die(subject(id="one"))
    server.die(subject(id="two", timeout_s=3.0))
    assert server.held(subject(id="three"))


def test_request_of_another_tenant_is_another_suspect() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    assert server.held(subject())
    assert server.is_free(subject(tenant="b"))
    server.die(subject(tenant="b"))
    assert server.is_free(subject(tenant="b"))
    server.die(subject(tenant="b"))
    assert server.held(subject(tenant="b"))


def test_request_is_free_again_after_its_time() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    server.now_s += HOLD_S
    assert server.is_free(subject())
    # The count of its deaths starts again.
    server.die(subject())
    assert server.is_free(subject())


def test_request_that_completes_is_cleared() -> None:
    server = Server()
    server.die(subject())
    server.quarantine.completed(subject(), server.now_s)
    server.die(subject())
    assert server.is_free(subject())


def test_hold_of_zero_turns_quarantine_off() -> None:
    server = Server(0)
    server.attack(subject(), deaths=5)
    assert server.is_free(subject())
    assert server.is_free(subject("variant"))


def test_suspects_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.admission.quarantine, "_MOST", 10)
    server = Server()
    server.die(subject())
    server.die(subject())
    server.die(*(subject(f"other {at}", f"tenant {at}") for at in range(10)))
    assert server.is_free(subject())
    assert len(server.quarantine._requests) == 10
    assert server.quarantine._tenants.keys() <= {f"tenant {at}" for at in range(10)}


# -- trials of requests


def test_held_request_is_tried_alone_once_the_engine_served() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    server.now_s += PAUSE_S - 1
    assert server.held(subject())
    server.now_s += 1
    assert server.held(subject(), is_idle=False)
    trial = server.trial(subject())
    assert (trial.of_request, trial.is_alone, trial.must_end) == (True, True, True)
    # The whole server runs one trial at a time.
    assert server.held(subject())


def test_held_request_that_completes_its_trial_is_cleared() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    server.now_s += PAUSE_S
    server.quarantine.survived(server.trial(subject()))
    assert server.is_free(subject())


def test_trials_that_are_left_come_once_a_minute() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    server.now_s += PAUSE_S
    for _ in range(3):
        server.quarantine.over(server.trial(subject()))
        server.now_s += PAUSE_S - 1
        assert server.held(subject())
        server.now_s += 1


def test_pause_before_a_trial_doubles_with_each_death() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    for pause_s in (PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, HOLD_S / 2, HOLD_S / 2):
        server.now_s = server.ready_s + pause_s - 1
        assert server.held(subject())
        server.now_s += 1
        server.trial(subject())
        server.die(subject(), served_s=pause_s)


def test_request_never_alone_at_a_death_is_tried_at_once() -> None:
    server = Server()
    for _ in range(2):
        server.die(subject(f"variant {server.engine}"), subject("endless", "b"))
    assert server.held(subject("endless", "b"), is_idle=False)
    trial = server.trial(subject("endless", "b"))
    assert (trial.is_alone, trial.must_end) == (True, False)


def test_death_in_a_requests_trial_is_not_its_tenants() -> None:
    server = Server()
    server.die(subject())
    server.die(subject())
    server.now_s += PAUSE_S
    server.trial(subject())
    server.die(subject(), served_s=PAUSE_S)
    assert server.is_free(subject("hello"))


# -- tenants


def test_tenant_of_three_quick_deaths_is_held() -> None:
    server = Server()
    server.attack(deaths=2)
    assert server.is_free(subject("hello"))
    server.attack(deaths=1)
    assert not server.held(subject("hello")).of_request
    assert server.is_free(subject("hello", "b"))


@pytest.mark.parametrize(("max_quick_deaths", "strikes"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (100, 3)])
def test_tenant_is_held_before_the_process_gives_up(max_quick_deaths: int, strikes: int) -> None:
    server = Server(strikes=strikes_before(max_quick_deaths))
    server.attack(deaths=strikes - 1)
    assert server.is_free(subject("hello"))
    server.attack(deaths=1)
    assert server.held(subject("hello"))


def test_tenant_of_deaths_far_apart_is_not_held() -> None:
    server = Server()
    for _ in range(5):
        server.die(subject(f"variant {server.engine}"), served_s=61)
    assert server.is_free(subject("hello"))


def test_only_tenant_is_never_held() -> None:
    server = Server(has_others=False)
    server.attack(deaths=10)
    assert server.is_free(subject("hello"))


def test_tenants_deaths_need_not_follow_each_other() -> None:
    server = Server()
    for tenant in ("a", "a", "b", "a"):
        server.attack(tenant=tenant, deaths=1)
    assert server.held(subject("hello"))
    assert server.is_free(subject("hello", "b"))


def test_held_tenant_runs_alone_once_the_engine_served() -> None:
    server = Server()
    server.attack()
    assert server.held(subject("hello")).left_s == PAUSE_S
    server.now_s += PAUSE_S
    assert server.held(subject("hello"), is_idle=False).left_s == TRIAL_S
    trial = server.trial(subject("hello"))
    assert (trial.of_request, trial.is_alone, trial.must_end) == (False, True, False)
    # The tenant runs one request at a time.
    assert server.held(subject("hello, too"))
    server.quarantine.survived(trial)
    assert server.is_free(subject("hello, too"))


def test_tenant_let_go_is_held_again_at_its_next_death() -> None:
    server = Server()
    server.attack()
    for pause_s in (PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S):
        server.now_s = server.ready_s + pause_s - 1
        assert server.held(subject("harmless"))
        server.now_s += 1
        server.quarantine.survived(server.trial(subject("harmless")))
        server.attack(deaths=1)
    server.now_s += HOLD_S
    assert server.is_free(subject("harmless"))


def test_bystanders_are_tried_at_once_beside_others() -> None:
    server = Server()
    server.attack(subject("x", "b"), subject("y", "c"))
    server.quarantine.completed(subject("x", "b"), server.now_s)
    server.quarantine.completed(subject("y", "c"), server.now_s)
    trial = server.trial(subject("x", "b"))
    assert not trial.is_alone
    # All requests of this tenant may run. Other tenants wait for their trials.
    assert server.is_free(subject("more", "b"))
    assert server.held(subject("y", "c")).left_s == TRIAL_S
    assert server.held(subject("poison")).left_s == TRIAL_S
    server.quarantine.survived(trial)
    server.quarantine.survived(server.trial(subject("y", "c")))
    assert server.is_free(subject("x", "b"))
    assert server.is_free(subject("y", "c"))
    assert server.trial(subject("poison"))


def test_death_in_a_trial_is_blamed_on_its_tenant_alone() -> None:
    server = Server()
    beside = subject("x", "b")
    server.attack(beside)
    server.quarantine.completed(beside, server.now_s)
    server.quarantine.survived(server.trial(beside))
    poison = subject("poison")
    server.trial(poison)
    server.die(beside, poison)
    assert server.is_free(beside)
    # The tenant alone is blamed for this death, so its pause is longer.
    assert server.held(subject("hello")).left_s == 2 * PAUSE_S


def test_trial_undecided_when_the_engine_freezes_is_blamed() -> None:
    server = Server()
    beside = subject("x", "b")
    server.attack(beside)
    server.trial(subject("freezing"))
    # The watchdog takes longer than a trial to notice.
    server.now_s += 20
    assert server.judge(subject("other", "b"))
    server.die(subject("freezing"), subject("z", "c"), served_s=20)
    assert server.held(subject("hello")).left_s == 2 * PAUSE_S
    assert isinstance(server.judge(subject("other", "b")), Trial)


def test_any_request_that_completes_in_a_tenants_trial_ends_it() -> None:
    server = Server()
    server.attack(subject("x", "b"))
    endless = server.trial(subject("endless", "b"))
    server.quarantine.completed(subject("hello", "b"), server.now_s)
    server.quarantine.over(endless)
    assert server.is_free(subject("more", "b"))


def test_trial_left_early_does_not_let_a_tenant_go() -> None:
    server = Server()
    server.attack(subject("x", "b"))
    server.quarantine.over(server.trial(subject("hello")))
    assert server.held(subject("hello")).left_s == 2 * TRIAL_S
    # Another tenant gets its trial.
    assert isinstance(server.judge(subject("other", "b")), Trial)


def test_engine_that_dies_of_every_tenant_holds_nobody() -> None:
    server = Server()
    server.attack(tenant="a")
    assert server.held(subject("hello", "a"))
    server.attack(tenant="b")
    assert server.is_free(subject("hello", "a"))
    assert server.is_free(subject("hello", "b"))


def test_engine_that_serves_others_is_not_at_fault() -> None:
    server = Server()
    server.attack(tenant="a")
    server.quarantine.completed(subject("hello", "c"), server.now_s)
    server.attack(tenant="b")
    assert server.held(subject("hello", "a"))
    assert server.held(subject("hello", "b"))


def test_late_report_of_a_death_blames_nobody() -> None:
    server = Server()
    server.attack(deaths=2)
    slow = subject("slow", "b")
    server.quarantine.ran_at_death(slow, 1, 1.0, server.now_s)
    server.quarantine.ran_at_death(slow, 2, 1.0, server.now_s)
    server.attack(deaths=1)
    assert server.held(subject("hello"))
    assert server.is_free(subject("hello", "b"))
