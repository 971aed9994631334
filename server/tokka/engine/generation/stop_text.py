"""Sends out the text of one choice without any part of a stop string, and keeps logprobs with their text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokka.core import TokenLogprob
from tokka.engine.markers import Markers


class StopFilter:
    """Holds back only text that may become a stop string, and cuts the text at the first stop string.

    Feed it the decoded text of each step; it returns the text that can be sent now. In total, it returns the text up
    to the stop string (with it, if `include_stop`). If a step completes several stop strings, the one that begins
    first counts.
    """

    __slots__ = ("_held", "_include_stop", "_sent_bytes", "_stops", "_token_end", "_tokens")

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = Markers(stops)
        self._include_stop = include_stop
        self._held = ""
        # Logprobs that wait for their text: (offset of the token's first byte in the whole text, token).
        self._tokens: deque[tuple[int, TokenLogprob]] = deque()
        self._token_end = 0
        self._sent_bytes = 0

    def add_tokens(self, tokens: Sequence[TokenLogprob]) -> None:
        """Queue logprobs to be sent together with their text."""
        for token in tokens:
            self._tokens.append((self._token_end, token))
            self._token_end += len(token.bytes)

    def feed(self, text: str) -> str:
        """Add decoded text; return the text that can no longer be part of a stop string."""
        if not self._stops:
            return self._pass(text)
        self._held += text
        keep = len(self._held) - self._stops.partial_length(self._held)
        return self._send(keep, keep)

    def feed_before_stop(self, text: str) -> tuple[str, str | None]:
        """Add decoded text that may complete a stop string; return the text to send and the matched stop string."""
        if not self._stops:
            return self._pass(text), None
        before = len(self._held)
        self._held += text
        # A stop string that was complete earlier did not count then (min_tokens), so it does not count now.
        ends = [(self._held.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._stops]
        found = [(at, stop) for at, stop in ends if at >= 0]
        if not found:
            return self.feed(""), None
        at, stop = min(found, key=lambda match: match[0])
        sent = self._send(at + len(stop) if self._include_stop else at, len(self._held))
        return sent, stop

    def flush(self) -> str:
        """Return the held text, at the end of a choice that no stop string ended."""
        return self._send(len(self._held), len(self._held))

    @property
    def held(self) -> str:
        """The text held back now."""
        return self._held

    @property
    def held_logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(token for _, token in self._tokens)

    def take_logprobs(self, everything: bool = False) -> tuple[TokenLogprob, ...]:
        """Return the queued logprobs whose text has begun to be sent, or all of them."""
        taken = []
        while self._tokens and (everything or self._tokens[0][0] < self._sent_bytes):
            taken.append(self._tokens.popleft()[1])
        return tuple(taken)

    def _pass(self, text: str) -> str:
        """Send all text and hold none back. Count its bytes only if there are logprobs."""
        if self._token_end:
            self._sent_bytes += len(text.encode())
        return text

    def _send(self, upto: int, consumed: int) -> str:
        sent, self._held = self._held[:upto], self._held[consumed:]
        self._sent_bytes += len(sent.encode())
        return sent
