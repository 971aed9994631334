"""What came of one request. Pure: no clock, no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokka.bench.connection import Answer, body_pieces, headers_of, status_of


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
