"""Arrivals and lengths of a real service: out of a file, or made of what such files have in common.

The made ones have the shape of the conversations that Azure published in 2023 (AzurePublicDataset, Azure LLM inference
trace): arrivals in bursts, prompts and answers about log-normal with medians of 1,000 and 130 tokens.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tokka.bench.failure import BenchFailedError

MAX_ARRIVALS = 1_000_000
# Names of the three columns, as files that are in use have them: moment, tokens of the prompt, tokens of the answer.
_COLUMNS = (
    ("arrival_s", "prompt_tokens", "output_tokens"),
    # Azure, 2023 and 2024.
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    # BurstGPT.
    ("Timestamp", "Request tokens", "Response tokens"),
)
# Seconds for which a made trace keeps its rate, and the shape of the gamma distribution that the rates are drawn from:
# counts then vary more than Poisson's.
_WINDOW_S, _SHAPE = 5.0, 2.0
# Medians, spreads (of the logarithm) and limits of made prompts and answers.
_PROMPT, _ANSWER = (1000, 0.9, 3, 8000), (130, 1.0, 1, 1000)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it is due, in seconds since the beginning, and how long it and its answer are."""

    at_s: float
    prompt_tokens: int
    max_tokens: int


class Trace(Protocol):
    @property
    def rate(self) -> float | None:
        """Its own requests a second; None: it has none, and needs to be told one."""

    def lasts_s(self, rate: float) -> float:
        """Return how long it goes on at this many requests a second."""

    def arrivals(self, rate: float, duration_s: float, chance: random.Random) -> Iterator[Arrival]:
        """Yield what arrives within the duration, in order, at this many requests a second on average."""


class MadeTrace:
    """A new one for each seed, without end."""

    rate = None

    def lasts_s(self, rate: float) -> float:
        return math.inf

    def arrivals(self, rate: float, duration_s: float, chance: random.Random) -> Iterator[Arrival]:
        until_s = 0.0
        while until_s < duration_s:
            at_s, until_s = until_s, min(duration_s, until_s + _WINDOW_S)
            here = rate * chance.gammavariate(_SHAPE, 1 / _SHAPE)
            while here > 0 and (at_s := at_s + chance.expovariate(here)) < until_s:
                yield Arrival(at_s, _log_normal(chance, *_PROMPT), _log_normal(chance, *_ANSWER))


class RecordedTrace:
    """One out of a file, made slower or faster to the rate that is asked for; from its beginning, whatever the seed."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        """`arrivals`: two or more, in order, the first at 0 and the last later."""
        self._arrivals = arrivals
        # Of the time between the first and the last, one moment belongs to each but one.
        self.rate = (len(arrivals) - 1) / arrivals[-1].at_s

    def arrivals(self, rate: float, duration_s: float, chance: random.Random) -> Iterator[Arrival]:
        slower = self.rate / rate
        for one in self._arrivals:
            if one.at_s * slower >= duration_s:
                return
            yield Arrival(one.at_s * slower, one.prompt_tokens, one.max_tokens)

    def lasts_s(self, rate: float) -> float:
        return self._arrivals[-1].at_s * self.rate / rate


def trace_of(name: str) -> Trace:
    """Return what `--trace` names: a file, or `made`. Raises BenchFailedError."""
    return MadeTrace() if name == "made" else read_trace(Path(name))


def read_trace(path: Path) -> RecordedTrace:
    """Read a CSV with a header. Requests without an answer are left out. Raises BenchFailedError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(_rows(csv.reader(file), f"--trace {path}"))
    except OSError as error:
        raise BenchFailedError(f"--trace {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise BenchFailedError(f"--trace {path}: it is no CSV in UTF-8") from None
    found.sort(key=lambda one: one.at_s)
    if len(found) < 2 or found[0].at_s == found[-1].at_s:
        raise BenchFailedError(f"--trace {path}: it needs two requests with answers, at two moments")
    first_s = found[0].at_s
    return RecordedTrace([Arrival(one.at_s - first_s, one.prompt_tokens, one.max_tokens) for one in found])


def _rows(rows: Iterator[list[str]], where: str) -> Iterator[Arrival]:
    header = [name.strip() for name in next(rows, [])]
    columns = next((names for names in _COLUMNS if set(names) <= set(header)), None)
    if columns is None:
        raise BenchFailedError(f"{where}: its first line must name the columns {', '.join(_COLUMNS[0])}")
    places = [header.index(name) for name in columns]
    for number, row in enumerate(filter(None, rows), start=2):
        if number > MAX_ARRIVALS + 1:
            raise BenchFailedError(f"{where}: it has more than {MAX_ARRIVALS} requests; give a part of it")
        if (arrival := _arrival(row, places, f"{where}: line {number}")).max_tokens > 0:
            yield arrival


def _arrival(row: Sequence[str], places: Iterable[int], where: str) -> Arrival:
    try:
        moment, prompt, answer = (row[place].strip() for place in places)
        return Arrival(_seconds(moment), max(1, int(prompt)), int(answer))
    except (IndexError, ValueError):
        raise BenchFailedError(f"{where} is not a moment (seconds, or a date with a time) and two counts") from None


def _seconds(moment: str) -> float:
    try:
        seconds = float(moment)
    except ValueError:
        seconds = datetime.fromisoformat(moment).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(moment)
    return seconds


def _log_normal(chance: random.Random, median: int, spread: float, lowest: int, highest: int) -> int:
    return int(min(highest, max(lowest, chance.lognormvariate(math.log(median), spread))))
