"""Arrivals and lengths of a real service, from a file, or generated with the same properties.

A generated trace has the shape of the conversations that Azure published in 2023 (AzurePublicDataset, Azure LLM
inference trace): bursty arrivals, and roughly log-normal prompts and completions with medians of 1,000 and 130 tokens.
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

from tokka.bench.errors import BenchFailedError

# Maximum requests of a file.
MAX_ARRIVALS = 1_000_000
# Names of the three columns in known files: time, tokens of the prompt, tokens of the completion.
_COLUMNS = (
    ("arrival_s", "prompt_tokens", "output_tokens"),
    # Azure, 2023 and 2024.
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    # BurstGPT.
    ("Timestamp", "Request tokens", "Response tokens"),
)
# Seconds for which a generated trace keeps its rate, and the shape of the rates' gamma distribution. Counts therefore
# vary more than in a Poisson process.
_WINDOW_S, _SHAPE = 5.0, 2.0
# Median, spread (of the logarithm) and limits, in tokens, of generated prompts and completions.
_PROMPT, _ANSWER = (1000, 0.9, 3, 8000), (130, 1.0, 1, 1000)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it is due, in seconds since the beginning, and the tokens of its prompt and its completion."""

    at_s: float
    prompt_tokens: int
    max_tokens: int


class Trace(Protocol):
    """A source of arrivals."""

    @property
    def rate(self) -> float | None:
        """The trace's own rate, in requests a second; None: the user must give one."""

    def lasts_s(self, rate: float) -> float:
        """Return the trace's length in seconds at this rate."""

    def arrivals(self, rate: float, duration_s: float, chance: random.Random) -> Iterator[Arrival]:
        """Yield the arrivals within the duration, in order, at this mean rate in requests a second."""


class MadeTrace:
    """A generated trace without end, different for each seed."""

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
    """A trace from a file, stretched or compressed to the requested rate. The seed does not change it."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        """`arrivals`: two or more, in order, the first at 0 and the last later."""
        self._arrivals = arrivals
        # The time from the first to the last arrival has one interval less than there are arrivals.
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
    """Return the trace that `--trace` names: a file, or `made`. Raises BenchFailedError."""
    return MadeTrace() if name == "made" else read_trace(Path(name))


def read_trace(path: Path) -> RecordedTrace:
    """Read a CSV file with a header. Skips requests without a completion. Raises BenchFailedError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(_rows(csv.reader(file), f"--trace {path}"))
    except OSError as error:
        raise BenchFailedError(f"--trace {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise BenchFailedError(f"--trace {path}: the file is not a CSV in UTF-8") from None
    found.sort(key=lambda one: one.at_s)
    if len(found) < 2 or found[0].at_s == found[-1].at_s:
        raise BenchFailedError(f"--trace {path}: the file needs two requests with completions, at different times")
    first_s = found[0].at_s
    return RecordedTrace([Arrival(one.at_s - first_s, one.prompt_tokens, one.max_tokens) for one in found])


def _rows(rows: Iterator[list[str]], where: str) -> Iterator[Arrival]:
    header = [name.strip() for name in next(rows, [])]
    columns = next((names for names in _COLUMNS if set(names) <= set(header)), None)
    if columns is None:
        raise BenchFailedError(f"{where}: the first line must name the columns {', '.join(_COLUMNS[0])}")
    places = [header.index(name) for name in columns]
    for number, row in enumerate(filter(None, rows), start=2):
        if number > MAX_ARRIVALS + 1:
            raise BenchFailedError(f"{where}: the file has more than {MAX_ARRIVALS} requests; use a part of it")
        if (arrival := _arrival(row, places, f"{where}: line {number}")).max_tokens > 0:
            yield arrival


def _arrival(row: Sequence[str], places: Iterable[int], where: str) -> Arrival:
    try:
        moment, prompt, answer = (row[place].strip() for place in places)
        return Arrival(_seconds(moment), max(1, int(prompt)), int(answer))
    except (IndexError, ValueError):
        raise BenchFailedError(f"{where} is not a time (seconds, or a date with a time) and two counts") from None


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
