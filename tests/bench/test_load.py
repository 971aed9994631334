"""The load generator, against a scripted server with known times and against the real program."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench.certificate import self_signed
from tests.bench.records import HEAD, chunked
from tests.bench.scripted import Seen, at_once, finish, scripted, text
from tests.program import Program, eventually
from tokka.bench.cpu import Cpu
from tokka.bench.errors import BenchFailedError
from tokka.bench.load import Run, run
from tokka.bench.plan import Plan, Tenant, poisson
from tokka.bench.sizes import Span

TTFT_S = 0.05
GAP_S = 0.02
# Seconds by which a timer of the event loop may fire early: its resolution.
EARLY_S = 0.002
TOLD: dict[str, Any] = {"duration_s": 0.5, "warmup_s": 0, "grace_s": 20}


async def paced(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Send four events with two tokens in each."""
    await asyncio.sleep(TTFT_S)
    writer.write(HEAD + chunked(text("a b")))
    for _number in range(3):
        await asyncio.sleep(GAP_S)
        writer.write(chunked(text("a b")))
    writer.write(finish(tokens=8))


async def test_load_measures_the_times_of_the_server() -> None:
    async with scripted(paced) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=1),), **TOLD)
        records, figures = await Run(plan).go()
    for record in records:
        assert (record.outcome, record.tokens, record.prompt_tokens) == ("completed", 8, 9)
        assert record.ttft_s is not None
        assert record.ttft_s >= TTFT_S - EARLY_S
        assert len(record.itl_s) == 3
        assert record.tpot_s == pytest.approx(sum(record.itl_s) / 7, abs=0.005)
        assert record.e2e_s is not None
        assert record.e2e_s >= TTFT_S + 3 * GAP_S - 4 * EARLY_S
        assert record.e2e_s >= record.ttft_s + sum(record.itl_s)
    # A busy machine may join two reads, but not half of them.
    assert figures["itl_s"]["p50"] >= GAP_S - EARLY_S
    assert figures["events_per_token"] == 0.5
    assert figures["concurrency"] <= 1


async def test_closed_loop_has_as_many_requests_open_as_users() -> None:
    async with scripted(paced) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=3),), **TOLD)
        records, _ = await Run(plan).go()
    assert seen.most_running == 3
    assert len(records) == len(seen.heads) > 3


async def test_open_loop_does_not_wait_for_answers() -> None:
    async def together(seen: Seen, writer: asyncio.StreamWriter) -> None:
        # No request gets its response before the last one has arrived. A loop that waited for responses would hang.
        async with seen.came:
            await seen.came.wait_for(lambda: len(seen.heads) >= 10)
        await at_once(seen, writer)

    async with scripted(together) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", rate=100),), max_requests=10, **TOLD)
        records, _ = await Run(plan).go()
    assert {record.outcome for record in records} == {"completed"}
    assert seen.most_running == 10


async def test_ttft_counts_the_wait_for_a_connection() -> None:
    async with scripted(paced) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", rate=100),), max_requests=4, max_connections=1, **TOLD)
        records, figures = await Run(plan).go()
    assert seen.most_running == 1
    assert figures["connections_opened"] == 1
    # TTFT counts from the due time. The last request waited for the three before it.
    assert max(record.ttft_s or 0 for record in records) > 3 * (TTFT_S + 3 * GAP_S) - 0.1


async def test_closed_loop_counts_from_the_sending() -> None:
    async with scripted(paced) as seen:
        # The second user has to wait for the first one's connection.
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=2),), max_connections=1, **TOLD)
        records, figures = await Run(plan).go()
    assert [record.due_s for record in records] == [record.sent_s for record in records]
    assert figures["client_late_s"]["max"] == 0


@pytest.mark.parametrize("tenant", [Tenant("all", concurrency=2), Tenant("all", rate=500)])
async def test_run_ends_with_its_last_request(tenant: Tenant) -> None:
    began_s = time.monotonic()
    async with scripted(at_once) as seen:
        plan = Plan(seen.url, "m", (tenant,), duration_s=60, warmup_s=0, max_requests=6)
        records, figures = await Run(plan).go()
    took_s = time.monotonic() - began_s
    assert took_s < 30
    assert len(records) == len(seen.heads) == figures["completed"] == 6
    # The rate is over the time of the run, not over the planned minute.
    assert figures["completed_per_s"] > 6 / took_s


async def test_run_fails_when_it_ends_within_the_warm_up() -> None:
    async with scripted(at_once) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", rate=500),), duration_s=60, warmup_s=30, max_requests=2)
        with pytest.raises(BenchFailedError, match="all 2 requests were over within the warm-up of 30 s"):
            await Run(plan).go()


async def test_answers_that_are_not_streamed() -> None:
    body = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":5}}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def whole(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)

    async with scripted(whole) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=1),), stream=False, max_requests=3, **TOLD)
        records, figures = await Run(plan).go()
    assert [(record.tokens, record.finish, record.ttft_s) for record in records] == [(5, "stop", None)] * 3
    assert figures["output_tokens_per_s"] > 0
    assert "stream" not in json.loads(seen.bodies[0])


async def test_refused_user_waits_for_the_retry_after_time() -> None:
    async def refuse(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 X\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n")

    async with scripted(refuse) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=1),), **TOLD)
        records, figures = await Run(plan).go()
    assert [record.outcome for record in records] == ["refused"]
    assert figures["refusals"] == {"503 503": 1}


async def test_server_may_be_below_a_path_and_want_a_key() -> None:
    async with scripted(at_once) as seen:
        tenant = Tenant("all", "secret", concurrency=1)
        plan = Plan(f"{seen.url}/openai/v1", "m", (tenant,), api="completions", max_requests=1, **TOLD)
        await Run(plan).go()
    assert seen.heads[0].startswith("POST /openai/v1/completions HTTP/1.1\r\n")
    assert "Authorization: Bearer secret\r\n" in seen.heads[0]


async def test_https_is_measured_and_its_certificate_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, context = self_signed(tmp_path)
    async with scripted(at_once, context) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=1),), max_requests=1, **TOLD)
        distrusted, _ = await Run(plan).go()
        # OpenSSL's own variable for trusted certificates.
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        trusted, _ = await Run(plan).go()
    assert [(record.outcome, record.code) for record in distrusted] == [("failed", "SSLCertVerificationError")]
    assert [(record.outcome, record.tokens) for record in trusted] == [("completed", 2)]


def test_nobody_there_is_a_failure_of_each_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    records, figures = run(Plan(f"http://127.0.0.1:{port}", "m", (Tenant("all", concurrency=1),), **TOLD))
    assert {record.outcome for record in records} == {"failed"}
    assert figures["failures"] == {"ConnectionRefusedError": len(records)}


async def test_answers_are_read_at_once_when_the_memory_limit_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokka.bench.load.MAX_KEPT_BYTES", 0)
    async with scripted(at_once) as seen:
        running = Run(Plan(seen.url, "m", (Tenant("all", concurrency=1),), max_requests=3, **TOLD))
        records, figures = await running.go()
    assert [(record.outcome, record.tokens) for record in records] == [("completed", 2)] * 3
    assert figures["completed"] == 3


async def test_figures_have_warm_up_refusals_when_nothing_follows() -> None:
    async def refuse(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 X\r\nretry-after: 60\r\ncontent-length: 4\r\n\r\nfull")

    async with scripted(refuse) as seen:
        plan = Plan(seen.url, "m", (Tenant("all", concurrency=1),), duration_s=0.4, warmup_s=0.2)
        _, figures = await Run(plan).go()
    assert (figures["offered"], figures["refusals"], figures["messages"]) == (0, {"503 503": 1}, {"503": "full"})


def test_server_that_has_ended_has_no_cpu_time() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    cpu = Cpu(ended.pid)
    cpu.mark()
    assert set(cpu.used()) == {"client", "others"}


def test_server_that_ends_between_has_no_cpu_time() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ending:
        cpu = Cpu(ending.pid)
        cpu.mark()
        ending.communicate(b"\n")
    cpu.mark()
    assert set(cpu.used()) == {"client", "others"}


def test_cpu_time_is_that_of_the_process_and_all_under_it() -> None:
    # The parent waits, the child works.
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        # Wait until the child exists. Its CPU time before the first mark does not count.
        eventually(lambda: bool(psutil.Process(parent.pid).children()), 30)
        cpu = Cpu(parent.pid)
        cpu.mark()
        parent.stdout.readline()
        cpu.mark()
        parent.communicate(b"\n")
    used = cpu.used()
    assert used["server"] - used["front"] >= 0.1
    assert used["front"] < 0.1


def test_open_loop_that_does_not_fit_into_memory_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokka.bench.load.MAX_WRITTEN_BYTES", 1 << 20)
    plan = Plan("http://127.0.0.1:1", "m", (Tenant("all", rate=1000),), prompt_tokens=Span(1000, 1000))
    with pytest.raises(BenchFailedError, match="more than 1 MiB; lower --duration"):
        run(plan)


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
        # The speed of a shared machine says nothing about the code.
        slo_ttft_s=60,
        slo_tpot_s=60,
        new_connections=api == "completions",
        pid=fake.process.pid,
    )
    records, found = run(plan)
    steady = [record for record in records if record.tenant == "steady"]
    assert [record.due_s for record in steady] == poisson(40, 1.2, random.Random("1 steady"))
    assert {record.outcome for record in records} == {"completed"}
    assert {record.tokens for record in steady} == {64}
    assert {record.tokens for record in records if record.tenant == "users"} == {8}
    assert found["goodput_per_s"] == found["offered_per_s"]
    assert len(records) - len(steady) >= 3
    assert found["cpu_s"]["front"] > 0
    assert (found["connections_opened"] == len(records)) is plan.new_connections


def test_open_request_is_cut_when_the_run_ends() -> None:
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
