"""What came of each request, and the arithmetic over many of them. Pure: no clock, no network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.load.connection import Answer, body_pieces, headers_of, status_of

Figures = dict[str, Any]
# Nobody decides for so long: who is refused after this has waited first.
WAITED_S = 0.1


@dataclass(slots=True)
class Record:
    """One request; moments in seconds from the beginning of the run."""

    tenant: str
    due_s: float
    sent_s: float | None = None
    status: int = 0
    # OpenAI's error code, of a refusal or of an error in the stream; else what broke the connection.
    code: str | None = None
    retry_after_s: float | None = None
    # First and last piece of the answer's text.
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    finish: str | None = None
    # When each event with text came: some servers put several tokens into one.
    events_s: list[float] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """Tell how it ended: `cut` is still open when the run was over."""
        if self.status not in (0, 200):
            return "refused"
        if self.finish and not self.code:
            return "completed"
        return "cut" if self.ended_s is None and not self.code else "failed"

    @property
    def late_s(self) -> float:
        """How late the client itself was."""
        return 0.0 if self.sent_s is None else self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """Since it was due: a late client counts against itself."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        if self.first_s is None or self.last_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)

    def is_good(self, ttft_s: float, tpot_s: float) -> bool:
        """Tell whether it was answered to its end and within both targets."""
        if self.outcome != "completed" or self.ttft_s is None:
            return False
        return self.ttft_s <= ttft_s and (self.tpot_s or 0.0) <= tpot_s

    def read(self, answer: Answer, began_s: float) -> None:
        """Take in what the connection kept."""
        head, pieces = body_pieces(answer)
        self.status = status_of(head)
        if answer.ended_s is not None:
            self.ended_s = answer.ended_s - began_s
            if not answer.is_whole:
                self.code = self.code or "broken"
        if self.status == 200:
            for at_s, event in _events(pieces):
                self._take(event, at_s - began_s)
            self.tokens = self.tokens or len(self.events_s)
        elif self.status:
            self._refusal(headers_of(head), b"".join(piece for _, piece in pieces))

    def _refusal(self, headers: dict[str, str], body: bytes) -> None:
        try:
            self.code = orjson.loads(body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            self.code = None
        # vLLM's codes are numbers: the status once more.
        self.code = str(self.code or self.status)
        # The other form, a date, is of no use to a client that counts in milliseconds; no server here sends it.
        after = headers.get("retry-after", "")
        self.retry_after_s = float(after) if after.replace(".", "", 1).isdigit() else None

    def _take(self, event: dict[str, Any], at_s: float) -> None:
        if "error" in event:
            self.code = str((event["error"] or {}).get("code") or "error")
        if usage := event.get("usage"):
            self.tokens, self.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        for choice in event.get("choices") or ():
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            self.finish = choice["finish_reason"] or self.finish
            if text:
                self.first_s = at_s if self.first_s is None else self.first_s
                self.events_s.append(at_s)
            if text or choice["finish_reason"]:
                self.last_s = at_s


def _events(pieces: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, dict[str, Any]]]:
    held = b""
    for at_s, piece in pieces:
        *whole, held = (held + piece).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: {"):
                yield at_s, orjson.loads(event[6:])


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least this part of the values does not exceed; None if there are none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def percentiles(values: Sequence[float], *percents: float) -> Figures:
    found = {f"p{percent:g}": percentile(values, percent) for percent in percents}
    found["max"] = max(values, default=None)
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that counts: requests due in it, tokens that came in it."""

    from_s: float
    until_s: float
    # When the client gave up on what was still open.
    over_s: float

    @property
    def length_s(self) -> float:
        return self.until_s - self.from_s

    def has(self, moment_s: float) -> bool:
        return self.from_s <= moment_s < self.until_s


def output_tokens(records: Iterable[Record], window: Window) -> float:
    """Return the tokens that came within the window, of whatever request."""
    total = 0.0
    for record in records:
        if record.events_s:
            inside = sum(window.has(at_s) for at_s in record.events_s)
            total += inside * record.tokens / len(record.events_s)
    return total


def concurrency(records: Iterable[Record], window: Window) -> float:
    """Return how many of the requests that were served were open at a time, on average over the window."""
    total_s = 0.0
    for record in records:
        if record.first_s is not None:
            ended_s = window.over_s if record.ended_s is None else record.ended_s
            total_s += max(0.0, min(ended_s, window.until_s) - max(record.due_s, window.from_s))
    return total_s / window.length_s


def summary(records: Sequence[Record], window: Window, *, slo_ttft_s: float, slo_tpot_s: float) -> Figures:
    counted = [record for record in records if window.has(record.due_s)]
    outcomes = Counter(record.outcome for record in counted)
    refused = [record for record in counted if record.outcome == "refused"]
    good = sum(record.is_good(slo_ttft_s, slo_tpot_s) for record in counted)
    # Who was accepted and never had a token has waited at least until the end: left out, it would improve the figures.
    never = [window.over_s - record.due_s for record in counted if record.outcome == "cut" and record.first_s is None]
    ttft = [record.ttft_s for record in counted if record.ttft_s is not None]
    return {
        "offered": len(counted),
        "offered_per_s": round(len(counted) / window.length_s, 3),
        **{name: outcomes[name] for name in ("completed", "refused", "failed", "cut")},
        "good": good,
        "goodput_per_s": round(good / window.length_s, 3),
        "completed_per_s": round(outcomes["completed"] / window.length_s, 3),
        "ttft_s": percentiles(ttft + never, 50, 90, 95, 99),
        "no_first_token": len(never),
        "tpot_s": percentiles([r.tpot_s for r in counted if r.tpot_s is not None], 50, 90, 95, 99),
        "output_tokens_per_s": round(output_tokens(records, window) / window.length_s, 2),
        "concurrency": round(concurrency(records, window), 2),
        "finish": dict(Counter(record.finish for record in counted if record.finish)),
        "prompt_tokens_mean": _mean([record.prompt_tokens for record in counted if record.prompt_tokens]),
        "refusals": dict(Counter(f"{record.status} {record.code}" for record in refused)),
        "failures": dict(Counter(str(record.code) for record in counted if record.outcome == "failed")),
        "refused_after_waiting": sum(r.ended_s is not None and r.ended_s - r.due_s > WAITED_S for r in refused),
        "refusal_s": percentiles([r.ended_s - r.due_s for r in refused if r.ended_s is not None], 50, 99),
        "refusal_from_sent_s": percentiles([r.ended_s - r.sent_s for r in refused if r.ended_s and r.sent_s], 50, 99),
        "retry_after_s": percentiles([r.retry_after_s for r in refused if r.retry_after_s is not None], 50, 99),
        "no_retry_after": sum(record.retry_after_s is None for record in refused),
        "client_late_s": percentiles([record.late_s for record in counted], 50, 99),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None
