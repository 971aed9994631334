"""A request that ran in two deaths of the engine is held back for a while; nobody else is."""

from __future__ import annotations

from dataclasses import replace

import tokka.admission.quarantine
from tokka.admission.quarantine import Quarantine
from tokka.core import GenerateRequest, Sampling, TextPrompt

HOLD_S = 600.0


def request(text: str = "kill", **fields: object) -> GenerateRequest:
    return replace(GenerateRequest("id", "m", (TextPrompt(text),), Sampling()), **fields)  # type: ignore[arg-type]


def after_two_deaths() -> Quarantine:
    quarantine = Quarantine(HOLD_S)
    quarantine.ran_at_death(request(), engine=1, now_s=0)
    quarantine.ran_at_death(request(), engine=2, now_s=10)
    return quarantine


def test_one_death_is_chance() -> None:
    quarantine = Quarantine(HOLD_S)
    quarantine.ran_at_death(request(), engine=1, now_s=0)
    assert quarantine.holds_for_s(request(), now_s=1) == 0


def test_twice_in_one_death_is_one_death() -> None:
    quarantine = Quarantine(HOLD_S)
    for _ in range(5):
        quarantine.ran_at_death(request(), engine=1, now_s=0)
    assert quarantine.holds_for_s(request(), now_s=1) == 0


def test_two_deaths_hold_it_back() -> None:
    assert after_two_deaths().holds_for_s(request(), now_s=110) == HOLD_S - 100


def test_another_id_is_the_same_request_and_other_words_are_another() -> None:
    quarantine = after_two_deaths()
    assert quarantine.holds_for_s(request(id="other", timeout_s=3.0), now_s=11) > 0
    assert quarantine.holds_for_s(request("hello"), now_s=11) == 0
    assert quarantine.holds_for_s(request(sampling=Sampling(n=2)), now_s=11) == 0


def test_after_its_time_it_may_try_again() -> None:
    quarantine = after_two_deaths()
    assert quarantine.holds_for_s(request(), now_s=10 + HOLD_S) == 0
    # And begins anew.
    quarantine.ran_at_death(request(), engine=3, now_s=700)
    assert quarantine.holds_for_s(request(), now_s=701) == 0


def test_a_suspect_that_completes_is_innocent() -> None:
    quarantine = Quarantine(HOLD_S)
    quarantine.ran_at_death(request(), engine=1, now_s=0)
    quarantine.completed(request())
    quarantine.ran_at_death(request(), engine=2, now_s=10)
    assert quarantine.holds_for_s(request(), now_s=11) == 0


def test_zero_turns_it_off() -> None:
    quarantine = Quarantine(0)
    quarantine.ran_at_death(request(), engine=1, now_s=0)
    quarantine.ran_at_death(request(), engine=2, now_s=0)
    assert quarantine.holds_for_s(request(), now_s=0) == 0


def test_suspects_are_bounded_and_the_oldest_go_first() -> None:
    quarantine = after_two_deaths()
    for at in range(tokka.admission.quarantine._MAX_SUSPECTS):
        quarantine.ran_at_death(request(f"other {at}"), engine=3, now_s=20)
    assert quarantine.holds_for_s(request(), now_s=21) == 0
