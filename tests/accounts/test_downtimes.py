"""Downtimes in memory: which one is current, the error that it causes, and the checks of new ones."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tokka.accounts.downtimes import MAX_REASON_CHARS, Downtimes, downtime_object, new_downtime
from tokka.downtime import Downtime
from tokka.errors import Maintenance
from tokka.protocol.times import format_iso, zoned_moment_of

NOW = 1_800_000_000
AT = datetime.fromtimestamp(NOW, UTC)


def window(begin: int, end: int, name: str = "a") -> Downtime:
    return Downtime(name, NOW + begin, NOW + end, f"reason of {name}")


def known(*downtimes: Downtime) -> Downtimes:
    made = Downtimes()
    made.apply(downtimes)
    return made


def refusal(downtimes: Downtimes, now_s: float) -> Maintenance:
    with pytest.raises(Maintenance) as refused:
        downtimes.check(now_s)
    return refused.value


def test_a_downtime_lasts_from_its_begin_to_just_before_its_end() -> None:
    downtimes = known(window(10, 20))
    downtimes.check(NOW + 9.9)
    assert refusal(downtimes, NOW + 10)
    assert refusal(downtimes, NOW + 19.9)
    downtimes.check(NOW + 20)


def test_current_downtime_is_the_one_with_the_last_end() -> None:
    long, short = window(0, 100, "long"), window(5, 20, "short")
    assert known(long, short).current(NOW + 10) == known(short, long).current(NOW + 10) == long


def test_list_omits_downtimes_that_are_over() -> None:
    over, under_way, to_come = window(-9, 0), window(-5, 5), window(50, 60)
    assert known(over, under_way, to_come).not_over(NOW) == [under_way, to_come]
    assert [downtime_object(one, NOW)["status"] for one in (over, under_way, to_come)] == [
        *("over", "under way", "to come")
    ]


def test_refusal_has_the_window_in_its_message_and_details() -> None:
    error = refusal(known(Downtime("a", NOW, NOW + 7200, "new GPUs")), NOW)
    times = {"begin": "2027-01-15T08:00:00Z", "end": "2027-01-15T10:00:00Z"}
    assert error.details == {**times, "reason": "new GPUs"}
    assert all(text in error.message for text in error.details.values())
    assert error.oauth_body() == {
        "error": "maintenance",
        "error_description": error.message,
        "details": {**times, "reason": "new GPUs"},
    }
    assert error.body()["error"]["code"] == "maintenance"


@pytest.mark.parametrize(
    ("left_s", "after", "again"), [(7200, "120", "false"), (121, "120", "false"), (120, "120", None), (0.2, "1", None)]
)
def test_a_client_waits_for_an_end_that_is_near_and_for_no_other(left_s: float, after: str, again: str | None) -> None:
    headers = Maintenance("b", "e", "r", left_s).headers()
    assert (headers["retry-after"], headers.get("x-should-retry")) == (after, again)


@pytest.mark.parametrize(
    ("begin", "end", "reason", "says"),
    [
        (10, 10, "x", "end: it must be after the begin"),
        (10, 5, "x", "end: it must be after the begin"),
        (-10, 0, "x", "end: it must be in the future"),
        *((0, 5, reason, "reason: write one line") for reason in ("", " ", "a\nb", "a\x1b[2J", " x", "x" * 501)),
    ],
)
def test_new_downtime_refuses_an_invalid_window(begin: int, end: int, reason: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        new_downtime(NOW + begin, NOW + end, reason, NOW)


def test_each_window_has_an_id_of_its_own() -> None:
    made = [new_downtime(NOW - 5, NOW + 5, "x" * MAX_REASON_CHARS, NOW) for _ in range(2)]
    assert made[0].id != made[1].id


@pytest.mark.parametrize(
    ("text", "is_utc"),
    [
        ("2027-01-15T10:00+02:00", "2027-01-15T08:00:00Z"),
        ("2027-01-15T08:00Z", "2027-01-15T08:00:00Z"),
        ("2027-01-15T08:00:59.9-00:30", "2027-01-15T08:30:59Z"),
        ("2h", "2027-01-15T10:00:00Z"),
        ("0m", "2027-01-15T08:00:00Z"),
    ],
)
def test_a_time_with_its_zone_is_kept_in_utc(text: str, is_utc: str) -> None:
    assert format_iso(zoned_moment_of(text, AT).timestamp()) == is_utc


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((text, "has no time zone") for text in ("2027-01-15T10:00", "2027-01-15")),
        *((text, "is not a time") for text in ("", "tomorrow", "2h30m", "-2h", "2027-13-01T00:00Z", "12:00Z")),
        *((text, "is not between 2000 and 2099") for text in ("0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00")),
    ],
)
def test_a_time_that_could_be_read_in_two_ways_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        zoned_moment_of(text, AT)
