"""Traces of real services as loads: known file formats are read, and generated traces have the published shape."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from tokka.bench.errors import BenchFailedError
from tokka.bench.plan import Plan, Tenant, due, sizes
from tokka.bench.sizes import Span, span_of
from tokka.bench.trace import MadeTrace, read_trace

OURS = "arrival_s,prompt_tokens,output_tokens\n10,100,5\n10.5,20,1\n12,7,800\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,100,5\n2023-11-16 18:15:47.1805900,20,1\n2023-11-16 18:15:48.6805900,7,800\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00+00:00,100,5\n"
    "2024-05-12 00:00:00.500000+00:00,20,1\n2024-05-12 00:00:02+00:00,7,800\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "45,ChatGPT,100,5,105,Conversation log\n45.5,GPT-4,20,1,21,API log\n46,GPT-4,9,0,9,API log\n"
    "47,ChatGPT,7,800,807,Conversation log\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [OURS, AZURE, AZURE_2024, BURSTGPT], ids=["ours", "azure", "azure 2024", "burstgpt"])
def test_files_that_are_in_use_are_read(text: str, tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, text))
    assert trace.rate == pytest.approx(1.0)
    arrivals = list(trace.arrivals(1.0, 60, random.Random(1)))
    assert [one.at_s for one in arrivals] == pytest.approx([0, 0.5, 2.0])
    assert [(one.prompt_tokens, one.max_tokens) for one in arrivals] == [(100, 5), (20, 1), (7, 800)]


def test_recorded_trace_is_scaled_to_the_rate_and_cut_at_the_end(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, OURS))
    assert [one.at_s for one in trace.arrivals(0.5, 60, random.Random(1))] == pytest.approx([0, 1.0, 4.0])
    assert [one.at_s for one in trace.arrivals(0.5, 4, random.Random(1))] == pytest.approx([0, 1.0])
    assert trace.lasts_s(0.5) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "first line must name the columns arrival_s, prompt_tokens, output_tokens"),
        ("a,b\n1,2\n", "first line must name the columns"),
        (OURS + "x,1,1\n", "line 5 is not a time"),
        (OURS + "nan,1,1\n", "line 5 is not a time"),
        (OURS + "13,1\n", "line 5 is not a time"),
        ("arrival_s,prompt_tokens,output_tokens\n1,1,1\n", "two requests with completions, at different times"),
        ("arrival_s,prompt_tokens,output_tokens\n1,1,1\n1,1,1\n", "two requests with completions, at different times"),
    ],
)
def test_file_of_another_form_is_refused_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BenchFailedError, match=reason):
        read_trace(written(tmp_path, text))


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchFailedError, match=r"none\.csv: No such file"):
        read_trace(tmp_path / "none.csv")


def test_made_trace_has_the_published_shape() -> None:
    arrivals = list(MadeTrace().arrivals(8, 5000, random.Random(3)))
    assert len(arrivals) / 5000 == pytest.approx(8, rel=0.05)
    assert statistics.median(one.prompt_tokens for one in arrivals) == pytest.approx(1000, rel=0.05)
    assert statistics.median(one.max_tokens for one in arrivals) == pytest.approx(130, rel=0.05)
    assert all(before.at_s < after.at_s for before, after in pairwise(arrivals))
    # Counts in five seconds. The variance of Poisson counts equals their mean; here it is about 20 times the mean.
    counts = [0] * 1000
    for one in arrivals:
        counts[int(one.at_s / 5)] += 1
    assert statistics.variance(counts) > 10 * statistics.mean(counts)


def test_made_trace_is_the_same_for_the_same_seed() -> None:
    first, again, other = (list(MadeTrace().arrivals(5, 60, random.Random(seed))) for seed in (1, 1, 2))
    assert first == again != other


def test_open_loop_sends_the_trace_up_to_the_limit_of_the_plan() -> None:
    plan = Plan("http://127.0.0.1:1", "m", (), duration_s=60, trace=MadeTrace(), max_requests=9)
    tenant = Tenant("all", rate=5)
    assert due(plan, tenant, random.Random(1)) == list(MadeTrace().arrivals(5, 60, random.Random(1)))[:10]


def test_lengths_of_a_range_are_each_doubling_as_likely() -> None:
    plan = Plan("http://127.0.0.1:1", "m", (), prompt_tokens=span_of("", "20-8000"), max_tokens=span_of("", "1-800"))
    chance = random.Random(2)
    drawn = [size for size, _ in zip(sizes(plan, Tenant("all"), chance), range(20_000), strict=False)]
    prompts, answers = zip(*drawn, strict=True)
    assert 20 <= min(prompts) <= 21
    assert 7900 < max(prompts) <= 8000
    assert statistics.median(prompts) == pytest.approx(400, rel=0.05)
    assert (min(answers), max(answers)) == (1, 800)


def test_one_length_is_a_range_of_its_own() -> None:
    assert span_of("--max-tokens", "64") == Span(64, 64)


@pytest.mark.parametrize("text", ["0", "-5", "5-", "9-5", "x", "1-2-3", "5000000"])
def test_lengths_that_are_none_are_refused_with_the_option(text: str) -> None:
    with pytest.raises(BenchFailedError, match=f"--max-tokens {text}: write tokens"):
        span_of("--max-tokens", text)
