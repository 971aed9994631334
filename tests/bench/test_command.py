"""`tokka bench` as a program: tables, JSON and pictures, wrong usage, and how it finds the server's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.program import NO_SUCH_PROXY, TOKKA, Program, free_port, running
from tokka.bench.address import address_of
from tokka.bench.errors import BenchFailedError
from tokka.bench.target import find, listening_pid
from tokka.cli.bench import loads_of

SHORT = ("--duration", "0.6", "--warmup", "0.1")
PNG = b"\x89PNG\r\n\x1a\n"


def bench(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOKKA), "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **(env or {})},
    )


def wrong(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """Return the last line on stderr of a failed command."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert code == 1 or len(done.stderr.splitlines()) == 1
    return done.stderr.splitlines()[-1]


# -- figures


def test_table_has_a_column_for_each_load(fake: Program) -> None:
    done = bench(fake.url, "--concurrency", "1,2", *SHORT, "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    rows = {line[:17].strip(): line.split() for line in done.stdout.splitlines()}
    assert rows["metric"][-2:] == ["x1", "x2"]
    for name in ("goodput", "output", "TTFT p50", "ITL p99", "TPOT p90", "E2E p99", "front CPU", "server CPU"):
        assert all(float(cell) >= 0 for cell in rows[name][-2:]), name
    assert float(rows["output"][-1]) > 0


def test_json_has_the_plan_and_the_figures_of_the_run(fake: Program, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    options = ("--rate", "30", *SHORT, "--max-tokens", "7", "--api", "completions", "--seed", "5", "--out", str(out))
    done = bench(fake.url, "--json", "--api-key", "tk-secret", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures = found["runs"][0]["figures"]
    assert (found["seed"], found["servers"][0]["model"], found["comparison"]) == (5, fake.model, [])
    assert found["hardware"]["cores"] == os.cpu_count()
    assert figures["completed"] == figures["offered"] > 0
    assert figures["output_tokens_mean"] == 7
    assert figures["front_cpu_us_per_token"] is not None
    kept = json.loads(out.read_text())
    assert kept["figures"] == figures
    assert "tk-secret" not in out.read_text() + done.stdout
    # The second run appends to the file.
    bench(fake.url, *options)
    assert len(out.read_text().splitlines()) == 2


def test_two_servers_take_turns(fake: Program, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    with running("--engine", "fake", "--served-model-name", "other") as second:
        arguments = ("--compare", second.url, "--compare-model", "other", "--rounds", "2", "--out", str(out))
        done = bench(fake.url, "--concurrency", "1", *SHORT, *arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["url"] for line in lines] == [fake.url, second.url, second.url, fake.url]
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("TTFT p50")]
    first, other, ratio, lowest, highest = map(float, row[4:9])
    assert row[3] == "lower"
    assert min(first, other, lowest) > 0
    assert lowest <= ratio <= highest


def test_whole_answers_have_no_times_of_tokens(fake: Program) -> None:
    done = bench(fake.url, "--no-stream", "--requests", "5", "--warmup", "0", "--prompt-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert "E2E p50" in done.stdout
    assert not any(name in done.stdout for name in ("TTFT p50", "ITL", "TPOT p50", "\ngoodput  "))


def test_bench_sends_the_prompts_of_the_file(fake: Program, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages":[{"role":"user","content":"' + "x" * 200 + '"}]}\n')
    done = bench(fake.url, "--prompts", str(file), "--requests", "4", "--warmup", "0", "--json")
    figures = json.loads(done.stdout)["runs"][0]["figures"]
    # The scripted engine's tokens are bytes.
    assert figures["prompt_tokens_mean"] > 200


def test_trace_is_replayed_at_its_own_pace(fake: Program, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = [f"{at / 10},{20 + at},{1 + at % 3}" for at in range(12)]
    file.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    done = bench(fake.url, "--trace", str(file), "--duration", "1.05", "--warmup", "0", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["runs"][0]["figures"]
    assert figures["completed"] == figures["offered"] == 11
    assert figures["output_tokens_mean"] == 1.9


def test_trace_can_be_made_and_lengths_may_be_of_a_range(fake: Program) -> None:
    done = bench(fake.url, "--trace", "made", "--rate", "20", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["figures"]["completed"] > 0
    lengths = ("--prompt-tokens", "1-200", "--max-tokens", "2-60")
    done = bench(fake.url, "--concurrency", "2", *lengths, *SHORT, "--json")
    assert 2 < json.loads(done.stdout)["runs"][0]["figures"]["output_tokens_mean"] < 60


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--trace", "none.csv"), "--trace none.csv: No such file"),
        (("--trace", "made"), "--trace made needs --rate"),
        (("--trace", "made", "--concurrency", "2"), "leave --concurrency out"),
        (("--trace", "made", "--rate", "1", "--prompts", "x"), "leave --prompts out"),
        (("--prompt-tokens", "0"), "--prompt-tokens 0: write tokens"),
        (("--max-tokens", "9-5"), "--max-tokens 9-5: write tokens"),
    ],
)
def test_trace_or_lengths_that_cannot_be_are_refused(fake: Program, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in wrong(bench(fake.url, *arguments))


def test_trace_shorter_than_the_run_is_refused(fake: Program, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n5,1,1\n")
    assert "--trace lasts 5 s" in wrong(bench(fake.url, "--trace", str(file)))


def test_picture_is_a_png(fake: Program, tmp_path: Path) -> None:
    picture = tmp_path / "load.png"
    done = bench(fake.url, "--rate", "20,40", *SHORT, "--max-tokens", "4", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(PNG)


# -- mistakes that the user can fix


def test_wrong_usage_is_one_line(fake: Program, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        return wrong(bench(fake.url, *SHORT, *arguments))

    assert "give one of them" in refused("--rate", "1", "--concurrency", "1")
    assert "has no model 'none'; choose one with --model: fake" in refused("--model", "none")
    assert "No such file" in refused("--prompts", str(tmp_path / "none"))
    assert "--plot" in refused("--plot", str(tmp_path / "picture"))
    assert "--out" in refused("--out", str(tmp_path / "none" / "out.jsonl"))
    assert "--concurrency 9 needs as many --connections" in refused("--concurrency", "9", "--connections", "8")
    assert "--warmup 9 leaves nothing" in refused("--warmup", "9")


def test_server_that_is_not_there_is_named_with_the_remedy() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    line = wrong(bench(url))
    assert f"no connection to {url}" in line
    assert "tokka serve" in line


def test_bench_goes_past_a_proxy_to_this_machine(fake: Program) -> None:
    done = bench(fake.url, *SHORT, env=NO_SUCH_PROXY)
    assert done.returncode == 0, done.stderr


def test_plot_names_the_missing_package_when_matplotlib_is_absent(fake: Program, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('no', name='matplotlib')\n")
    done = bench(fake.url, *SHORT, "--plot", str(tmp_path / "load.png"), env={"PYTHONPATH": str(tmp_path)})
    assert "pip install 'tokka[plot]'" in wrong(done)


def test_bench_prints_the_servers_message_when_the_key_is_wrong() -> None:
    with running("--engine", "fake", "--api-key", "right") as server:
        line = wrong(bench(server.url, "--api-key", "wrong"))
        said = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer wrong"}).json()
        assert said["error"]["message"] in line
        assert "401" in line
        done = bench(server.url, "--requests", "2", "--warmup", "0", env={"TOKKA_API_KEY": "right"})
        assert done.returncode == 0, done.stderr


def test_bench_prints_the_reason_when_every_request_is_refused(fake: Program) -> None:
    done = bench(fake.url, *SHORT, "--max-tokens", "1000000")
    assert "no request was completed" in wrong(done, code=1)
    assert "400 context_length_exceeded: " in done.stderr


@pytest.mark.parametrize(
    ("rates", "concurrencies", "labels"),
    [
        ([], [], ["x1"]),
        (["1,2.5", "1"], [], ["1/s", "2.5/s"]),
        ([], ["4", "8"], ["x4", "x8"]),
    ],
)
def test_loads_are_repeated_or_have_commas(rates: list[str], concurrencies: list[str], labels: list[str]) -> None:
    assert [load.label for load in loads_of(rates, concurrencies)] == labels


@pytest.mark.parametrize(
    ("rates", "concurrencies"),
    [(["0"], []), (["nan"], []), (["1,,2"], []), (["1e9"], []), ([], ["1.5"]), ([], ["0"]), ([], ["many"])],
)
def test_load_that_is_none_is_refused(rates: list[str], concurrencies: list[str]) -> None:
    with pytest.raises(BenchFailedError, match="write"):
        loads_of(rates, concurrencies)


# -- the server and its process


def test_server_on_this_machine_is_found_by_its_socket(fake: Program) -> None:
    assert find(fake.url, model=None, key="", pid=None).pid == fake.process.pid
    # The base URL as OpenAI's clients take it.
    assert find(f"{fake.url}/v1/", model=fake.model, key="", pid=None).url == fake.url


def test_process_of_another_machines_server_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_kind: str) -> list[Any]:
        raise AssertionError

    monkeypatch.setattr(psutil, "net_connections", look)
    assert listening_pid(address_of("http://192.0.2.1:8000")) is None


@pytest.mark.parametrize(
    ("failing", "port"), [(psutil.AccessDenied(), 1), (PermissionError(), 1)], ids=["denied", "not permitted"]
)
def test_process_that_may_not_be_seen_is_none(monkeypatch: pytest.MonkeyPatch, failing: Exception, port: int) -> None:
    def look(_kind: str) -> list[Any]:
        raise failing

    monkeypatch.setattr(psutil, "net_connections", look)
    assert listening_pid(address_of(f"http://127.0.0.1:{port}")) is None


def test_bench_reports_a_process_that_does_not_exist(fake: Program) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with pytest.raises(BenchFailedError, match=f"--pid {ended.pid}: there is no such process"):
        find(fake.url, model=None, key="", pid=ended.pid)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "http://a:b", ""])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BenchFailedError):
        find(url, model=None, key="", pid=None)


def test_address_has_host_port_prefix_and_tls() -> None:
    plain, tls = address_of("http://[::1]:81/v1"), address_of("https://a.example/openai/v1/")
    assert (plain.host, plain.port, plain.netloc, plain.prefix, plain.tls) == ("::1", 81, "[::1]:81", "", None)
    assert (tls.host, tls.port, tls.netloc, tls.prefix) == ("a.example", 443, "a.example", "/openai")
    assert tls.tls is not None
