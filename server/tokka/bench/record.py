"""The record of one request and its result. Pure: no clock, no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from tokka.bench.connection import Answer, body_pieces, headers_of, status_of

# Maximum characters of an error message.
MAX_MESSAGE = 200
EVENT_STREAM = "text/event-stream"
# Fields with tokens in a choice or its delta, in both APIs, with OpenAI's, vLLM's and DeepSeek's names.
TOKEN_FIELDS = ("content", "text", "reasoning", "reasoning_content", "tool_calls", "refusal")


@dataclass(slots=True)
class Record:
    """One request and its result. Times are seconds since the beginning of the run."""

    tenant: str
    # When it was due; in a closed loop, when it was sent.
    due_s: float
    sent_s: float | None = None
    status: int = 0
    # OpenAI's error code, of a refusal or of an error in the stream; else the error that broke the connection.
    code: str | None = None
    # The message with the code.
    message: str | None = None
    retry_after_s: float | None = None
    # When the first tokens came, and when the last tokens or the finish reason came.
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float | None = None
    # From the server's `usage`; 0 without it. Events are not counted, since some servers put several tokens into one.
    tokens: int = 0
    prompt_tokens: int = 0
    finish: str | None = None
    # When each event with tokens came. A response that is not streamed counts as one event.
    events_s: list[float] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """How the request ended: completed, refused, failed, or cut, which means still open at the end of the run."""
        if self.status not in (0, 200):
            return "refused"
        if self.finish and not self.code:
            return "completed"
        return "cut" if self.ended_s is None and not self.code else "failed"

    @property
    def late_s(self) -> float:
        """Seconds by which the client sent the request too late."""
        return 0.0 if self.sent_s is None else self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the due time to the first tokens. They include the client's own delay."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2e_s(self) -> float | None:
        """Seconds from the due time to the end of a complete response."""
        return self.ended_s - self.due_s if self.ended_s is not None and self.outcome == "completed" else None

    @property
    def itl_s(self) -> list[float]:
        """Seconds between consecutive events with tokens."""
        return [after - before for before, after in pairwise(self.events_s)]

    @property
    def tpot_s(self) -> float | None:
        """Seconds from the first token to the last one, or to the finish reason, for each token after the first."""
        if self.first_s is None or self.last_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)

    def is_good(self, ttft_s: float, tpot_s: float) -> bool:
        """Tell whether the request completed within both targets."""
        if self.outcome != "completed" or self.ttft_s is None:
            return False
        return self.ttft_s <= ttft_s and (self.tpot_s or 0.0) <= tpot_s

    def read(self, answer: Answer, began_s: float) -> None:
        """Parse the response that the connection kept."""
        if answer.ended_s is not None:
            self.ended_s = answer.ended_s - began_s
            if not answer.is_whole:
                self.code = self.code or "broken"
        try:
            self._read(answer, began_s)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            self.code, self.message = "malformed", "the response is not in OpenAI's format"

    def _read(self, answer: Answer, began_s: float) -> None:
        head, pieces = body_pieces(answer)
        self.status = status_of(head)
        headers = headers_of(head)
        if self.status == 200 and headers.get("content-type", "").startswith(EVENT_STREAM):
            for at_s, event in _events(pieces):
                self._take(event, at_s - began_s)
        elif self.status == 200:
            self._take_whole(b"".join(piece for _, piece in pieces))
        elif self.status:
            self._refusal(headers, b"".join(piece for _, piece in pieces))

    def _refusal(self, headers: dict[str, str], body: bytes) -> None:
        try:
            error = orjson.loads(body)["error"]
            self.code, self.message = error["code"], str(error.get("message") or "")[:MAX_MESSAGE]
        except (ValueError, KeyError, TypeError):
            self.message = body[:MAX_MESSAGE].decode(errors="replace")
        # vLLM's codes are numbers that repeat the status.
        self.code = str(self.code or self.status)
        # The header may also hold a date. It is too coarse for this client, and the compared servers do not send it.
        after = headers.get("retry-after", "")
        self.retry_after_s = float(after) if after.replace(".", "", 1).isdigit() else None

    def _take(self, event: dict[str, Any], at_s: float) -> None:
        if error := event.get("error"):
            self.code, self.message = str(error.get("code") or "error"), str(error.get("message"))[:MAX_MESSAGE]
        if usage := event.get("usage"):
            self.tokens, self.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        for choice in event.get("choices") or ():
            has_tokens = any(map(choice.get("delta", choice).get, TOKEN_FIELDS))
            # Some servers omit the field until the end.
            finish = choice.get("finish_reason")
            self.finish = finish or self.finish
            if has_tokens:
                self.first_s = at_s if self.first_s is None else self.first_s
                self.events_s.append(at_s)
            if has_tokens or finish:
                self.last_s = at_s

    def _take_whole(self, body: bytes) -> None:
        """Parse a response that was not streamed. The time of its first token is unknown."""
        if self.ended_s is None or self.code:
            return
        answer = orjson.loads(body)
        usage = answer.get("usage") or {}
        self.tokens, self.prompt_tokens = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
        self.finish = answer["choices"][0]["finish_reason"]
        self.events_s.append(self.ended_s)


def _events(pieces: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, dict[str, Any]]]:
    held = b""
    for at_s, piece in pieces:
        *whole, held = (held + piece).split(b"\n\n")
        for event in whole:
            # Comments may precede the data.
            data = event.rpartition(b"\n")[2]
            if data.startswith(b"data: {"):
                yield at_s, orjson.loads(data[6:])
