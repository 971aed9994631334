"""The log of a background response's events, whatever part of it is compressed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokka.accounts.event_log import EventLog

EVENTS = [f"event: e\ndata: {number}\n\n".encode() for number in range(12)]


@given(st.sets(st.integers(0, 12)), st.integers(-1, 14))
def test_events_follow_any_number_and_are_read_back(seals: set[int], after: int) -> None:
    log = EventLog()
    for number, event in enumerate(EVENTS):
        if number in seals:
            log.seal()
        log.extend([event])
    assert list(log.after(after)) == EVENTS[after + 1 :]
    log.seal()
    assert list(log.after(after)) == EVENTS[after + 1 :]
    stored = EventLog(log.unsaved)
    assert len(stored) == len(log) == len(EVENTS)
    assert list(stored.after(after)) == EVENTS[after + 1 :]
