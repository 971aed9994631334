"""The arithmetic of the load generator, and a short load on the real program over the scripted engine."""

from __future__ import annotations

import random
import socket
from itertools import pairwise

import pytest

from tests.load.report import best_goodput, tables
from tests.program import Program
from tokka.bench.connection import Answer
from tokka.bench.figures import Figures, Window, concurrency, output_tokens, percentile, summary
from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant, arrivals
from tokka.bench.record import Record
from tokka.bench.request import requests_of

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WINDOW = Window(from_s=0, until_s=10, over_s=15)


def answered(due_s: float = 0, ttft_s: float = 0.5, tpot_s: float = 0.05, tokens: int = 64) -> Record:
    first_s = due_s + ttft_s
    events_s = [first_s + place * tpot_s for place in range(tokens)]
    return Record(
        tenant="all",
        due_s=due_s,
        sent_s=due_s,
        status=200,
        first_s=first_s,
        last_s=events_s[-1],
        ended_s=events_s[-1],
        tokens=tokens,
        finish="length",
        events_s=events_s,
    )


def refused(due_s: float, lasted_s: float) -> Record:
    return Record("all", due_s, due_s, 503, "server_overloaded", 2.0, ended_s=due_s + lasted_s)


def figures(records: list[Record]) -> dict[str, object]:
    return summary(records, WINDOW, slo_ttft_s=1, slo_tpot_s=0.1)


def chunked(*events: str) -> bytes:
    return b"".join(f"{len(event.encode()):x}\r\n{event}\r\n".encode() for event in events)


# -- when requests arrive


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    first, again, other = (arrivals(5, 60, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_arrivals_are_a_poisson_process() -> None:
    moments = arrivals(10, 2000, random.Random(3))
    gaps = [after - before for before, after in pairwise(moments)]
    assert len(moments) == pytest.approx(20_000, rel=0.03)
    # Exponential gaps: as much deviation as mean.
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.05)
    assert moments[0] > 0
    assert moments[-1] < 2000


def test_bursts_keep_the_rate() -> None:
    moments = arrivals(10, 2000, random.Random(3), burst=8)
    assert len(moments) == pytest.approx(20_000, rel=0.1)
    assert len(set(moments)) == len(moments) / 8


def test_nothing_arrives_at_rate_zero() -> None:
    assert arrivals(0, 10, random.Random(1)) == []


def test_prompts_differ_unless_asked() -> None:
    plan = Plan("http://127.0.0.1:1", "m", ())
    distinct = requests_of(plan, Tenant("a"), random.Random(1))
    assert len({next(distinct) for _ in range(50)}) == 50
    alike = requests_of(Plan("http://127.0.0.1:1", "m", (), same_prompt=True), Tenant("a"), random.Random(1))
    assert len({next(alike) for _ in range(50)}) == 1


# -- what is read of an answer


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_answer_is_read_however_it_was_cut(size: int) -> None:
    role = 'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    text = 'data: {"choices":[{"delta":{"content":"ä"},"finish_reason":null}]}\n\n'
    end = 'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
    sent = HEAD + chunked(role, text, text, end, usage, "data: [DONE]\n\n") + b"0\r\n\r\n"
    pieces = [(100.0 + at, sent[at : at + size]) for at in range(0, len(sent), size)]
    record = Record("all", due_s=0)
    record.read(Answer(pieces, ended_s=pieces[-1][0], is_whole=True), began_s=100.0)
    assert (record.status, record.outcome, record.tokens, record.prompt_tokens) == (200, "completed", 4, 9)
    assert len(record.events_s) == 2
    assert record.first_s is not None
    assert record.last_s is not None
    # The event was there when its last byte was.
    assert record.first_s >= (len(HEAD + chunked(role, text)) - 3) // size * size
    assert record.last_s <= len(HEAD + chunked(role, text, text, end))


def test_refusal_keeps_its_code_and_when_to_come_again() -> None:
    body = b'{"error":{"code":"server_overloaded"}}'
    head = f"HTTP/1.1 503 X\r\nRetry-After: 3\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    record = Record("all", due_s=0, sent_s=0)
    record.read(Answer([(1.0, head + body)], ended_s=1.0, is_whole=True), began_s=0)
    assert (record.outcome, record.status, record.code, record.retry_after_s) == (
        "refused",
        503,
        "server_overloaded",
        3.0,
    )


def test_answer_that_broke_off_has_failed_and_one_still_open_is_cut() -> None:
    piece = (1.0, HEAD + chunked('data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'))
    broken, still_open = Record("all", due_s=0), Record("all", due_s=0)
    broken.read(Answer([piece], ended_s=2.0), began_s=0)
    still_open.read(Answer([piece]), began_s=0)
    assert (broken.outcome, still_open.outcome) == ("failed", "cut")
    assert still_open.tokens == 1


def test_error_in_a_stream_is_a_failure() -> None:
    sent = HEAD + chunked('data: {"error":{"code":"engine_died"}}\n\n') + b"0\r\n\r\n"
    record = Record("all", due_s=0)
    record.read(Answer([(1.0, sent)], ended_s=1.0, is_whole=True), began_s=0)
    assert (record.outcome, record.code) == ("failed", "engine_died")


# -- figures


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([3.0, 1.0], 50) == 1.0
    assert percentile([3.0, 1.0], 51) == 3.0
    assert percentile([], 50) is None


def test_time_per_token_counts_the_gaps_not_the_tokens() -> None:
    assert answered(tpot_s=0.1, tokens=11).tpot_s == pytest.approx(0.1)
    assert answered(tokens=1).tpot_s is None


def test_time_to_first_token_counts_from_when_the_request_was_due() -> None:
    record = answered(due_s=1, ttft_s=0.5)
    record.sent_s = 1.2
    assert record.ttft_s == pytest.approx(0.5)
    assert record.late_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("record", "is_good"),
    [
        (answered(ttft_s=1.0, tpot_s=0.0625), True),
        (answered(ttft_s=1.01), False),
        (answered(tpot_s=0.11), False),
        (answered(tokens=1), True),
        (refused(0, 0.01), False),
        (Record("all", 0, 0, 200, first_s=0.1, last_s=0.2), False),
    ],
)
def test_good_is_answered_to_the_end_within_both_targets(record: Record, is_good: bool) -> None:
    assert record.is_good(1, 0.1) is is_good


def test_goodput_counts_what_was_due_in_the_window() -> None:
    found = figures(
        [answered(due_s) for due_s in (-1, 0, 5, 9.9, 10)] + [answered(3, ttft_s=2), refused(4, 0.01), refused(5, 0.3)]
    )
    assert (found["offered"], found["good"], found["goodput_per_s"]) == (6, 3, 0.3)
    assert (found["completed"], found["refused"]) == (4, 2)
    assert found["refusals"] == {"503 server_overloaded": 2}
    assert found["refusal_s"] == {"p50": 0.01, "p99": 0.3, "max": 0.3}
    assert found["refused_after_waiting"] == 1


def test_who_never_had_a_token_has_waited_to_the_end() -> None:
    found = figures([answered(0, ttft_s=0.5), Record("all", 5, 5, 200)])
    assert found["no_first_token"] == 1
    assert found["ttft_s"] == {"p50": 0.5, "p90": 10, "p95": 10, "p99": 10, "max": 10}


def test_tokens_count_when_they_came_and_for_as_many_as_they_were() -> None:
    record = answered(due_s=9, ttft_s=0.5, tpot_s=0.1, tokens=10)
    assert output_tokens([record], WINDOW) == 5
    record.tokens = 20
    assert output_tokens([record], WINDOW) == 10


def test_concurrency_is_the_mean_of_what_was_open() -> None:
    assert concurrency([answered(0, 1, 1, 5), answered(8, 1, 1, 10)], WINDOW) == pytest.approx((5 + 2) / 10)


# -- against the real program


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_every_request_is_accounted_for(fake: Program, api: str) -> None:
    plan = Plan(
        fake.url,
        fake.model,
        (Tenant("steady", rate=40), Tenant("users", concurrency=3, max_tokens=8)),
        duration_s=1.2,
        warmup_s=0.2,
        grace_s=30,
        api=api,
        # How fast a shared machine answers is no fact about the code.
        slo_ttft_s=60,
        slo_tpot_s=60,
        new_connections=api == "completions",
        pid=fake.process.pid,
    )
    records, found = run(plan)
    steady = [record for record in records if record.tenant == "steady"]
    assert [record.due_s for record in steady] == arrivals(40, 1.2, random.Random("1 steady"))
    assert {record.outcome for record in records} == {"completed"}
    assert {record.tokens for record in steady} == {64}
    assert {record.tokens for record in records if record.tenant == "users"} == {8}
    assert found["goodput_per_s"] == found["offered_per_s"]
    assert len(records) - len(steady) >= 3
    assert found["cpu_s"]["front"] > 0
    assert (found["connections_opened"] == len(records)) is plan.new_connections


def test_what_is_still_open_at_the_end_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        plan = Plan(
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            "m",
            (Tenant("all", concurrency=1),),
            duration_s=0.3,
            warmup_s=0,
            grace_s=0,
        )
        records, found = run(plan)
    assert [record.outcome for record in records] == ["cut"]
    assert (found["cut"], found["no_first_token"]) == (1, 1)


# -- the tables of the comparison


def line(server: str, label: str, goodput: float, place: int = 0) -> Figures:
    figures = {"goodput_per_s": goodput, "ttft_s": {"p95": None}}
    return {"experiment": "goodput", "server": server, "label": label, "round": place, "figures": figures}


def test_best_goodput_is_the_highest_median_over_the_rounds() -> None:
    lines = [line("tokka", "4/s", value, place) for place, value in enumerate((3.0, 3.5, 9.0))]
    lines += [line("tokka", "2x", 4.0), line("vllm", "4/s", 8.0)]
    assert best_goodput(lines, "tokka") == 4.0
    assert best_goodput(lines, "tokka", ladder_only=True) == 3.5
    assert best_goodput([], "tokka") == 0.0


def test_table_tells_goodput_as_a_part_of_the_best() -> None:
    text = tables([line("tokka", "4/s", 4.0), line("tokka", "2x", 3.0)], 1, 0.1)
    assert "| tokka | 4.00 | 3.00 (75%) |" in text
