"""Many streams at once, each read to its end: how the server ended it, and when."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.program import Program
from tests.wire import TLS, chunks_of

TIMEOUT_S = 120


@dataclass
class Stream:
    """One streamed request and its response."""

    body: dict[str, Any]
    # The API key, for a server that requires one.
    key: str = "none"
    status: int = 0
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    # The error, if the connection itself failed.
    broken: str | None = None
    ended_s: float = 0.0
    has_begun: threading.Event = field(default_factory=threading.Event)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return chunks_of(self.text)

    @property
    def content(self) -> str:
        return "".join(choice["text"] for chunk in self.chunks for choice in chunk.get("choices", ()))

    def terminals(self) -> list[str]:
        """Return every end that the stream declared: finish reasons and error codes, in order."""
        assert self.status, f"the connection failed before a response: {self.broken}"
        if self.status != 200:
            assert self.text, f"the response {self.status} has no body: {self.broken}"
            return [json.loads(self.text)["error"]["code"]]
        ends = []
        for chunk in self.chunks:
            if "error" in chunk:
                ends.append(chunk["error"]["code"])
            ends += [choice["finish_reason"] for choice in chunk.get("choices", ()) if choice["finish_reason"]]
        return ends

    @property
    def is_closed(self) -> bool:
        """Tell whether the stream ends with [DONE], and has only one."""
        return self.text.endswith("data: [DONE]\n\n") and self.text.count("[DONE]") == 1

    @property
    def _credential(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def read(self, url: str) -> None:
        try:
            with (
                httpx.Client(base_url=url, timeout=TIMEOUT_S, verify=TLS, headers=self._credential) as client,
                client.stream("POST", "/v1/completions", json={**self.body, "stream": True}) as answer,
            ):
                self.status, self.headers = answer.status_code, dict(answer.headers)
                for piece in answer.iter_text():
                    self.text += piece
                    self.has_begun.set()
        except httpx.HTTPError as error:
            self.broken = repr(error)
        self.ended_s = time.monotonic()
        self.has_begun.set()


@contextmanager
def streaming(program: Program, bodies: list[dict[str, Any]], key: str = "none") -> Iterator[list[Stream]]:
    """Run the requests at once; yield when each has had its first bytes, and wait at the end until all have ended."""
    streams = [Stream({"model": program.model, **body}, key) for body in bodies]
    threads = [threading.Thread(target=stream.read, args=(program.url,)) for stream in streams]
    for thread in threads:
        thread.start()
    for stream in streams:
        assert stream.has_begun.wait(TIMEOUT_S), "no first bytes"
    try:
        yield streams
    finally:
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a stream did not end"


def endless(count: int, mark: str, max_tokens: int = 7000) -> list[dict[str, Any]]:
    """Return distinct requests that run to their `max_tokens` unless something stops them.

    All of them must fit into the KV cache: the engine does not start the others.
    """
    return [
        {"prompt": f"{mark} {place}: once upon a time", "max_tokens": max_tokens, "ignore_eos": True}
        for place in range(count)
    ]
