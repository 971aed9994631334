"""Every request has exactly one outcome, the same on the wire, in the log and in the metrics, under random faults."""

from __future__ import annotations

import pytest
from benchmarks.faults.soak import OPTIONS, outcome_of, soak

from tests.program import running


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_random_faults_leave_every_request_with_exactly_one_outcome() -> None:
    with running(*OPTIONS) as program:
        books, problems = soak(program, seconds=60, seed=7, fault_every_s=(5.0, 8.0))
        assert problems == []
        # The run is meaningful only with enough faults and kinds of outcome.
        assert sum(books.engine_faults.values()) >= 2
        assert {"length", "timeout", "invalid", "error", "rejected"} <= set(books.outcomes())
        assert program.stop() == 0
        assert program.stderr() == ""


@pytest.mark.parametrize(
    "text",
    [
        'data: {"choices": []}\n\n',
        'data: {"choices": []}\n\ndata: [DONE]\n\n',
        'data: {"choices": [{"finish_reason": "stop", "stop_reason": null}]}\n\n'
        'data: {"error": {}}\n\ndata: [DONE]\n\n',
        'data: {"error": {}}\n\ndata: [DONE]\n\ndata: [DONE]\n\n',
    ],
)
def test_the_soak_notices_a_stream_without_exactly_one_end(text: str) -> None:
    with pytest.raises(ValueError, match="end"):
        outcome_of(200, text, streamed=True)
