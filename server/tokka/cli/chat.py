"""`tokka chat`: a conversation with a running server in the terminal, with streamed responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

from tokka.bench.address import client_options

# Maximum seconds without data. A busy server may take this long to process a prompt before the first token.
_READ_TIMEOUT_S = 600


@dataclass
class Conversation:
    """A server, the request fields, and the messages so far."""

    url: str
    api_key: str
    model: str | None
    system: str | None
    max_completion_tokens: int | None
    temperature: float | None
    messages: list[dict[str, str]] = field(default_factory=list)


class ChatFailedError(Exception):
    """The server gave no response. The message is for the user."""


def talk(conversation: Conversation) -> int:
    """Read messages from the terminal until end of input, and print the responses. Return the exit code."""
    console = Console(highlight=False)
    if conversation.system:
        conversation.messages.append({"role": "system", "content": conversation.system})
    try:
        with httpx.Client(
            base_url=conversation.url,
            headers={"authorization": f"Bearer {conversation.api_key}"},
            timeout=httpx.Timeout(10, read=_READ_TIMEOUT_S),
            **client_options(conversation.url),
        ) as client:
            conversation.model = conversation.model or _first_model(client)
            console.print(
                f"[dim]{conversation.model} at {conversation.url}. "
                "/undo removes the last exchange, /reset removes all. Ctrl-D ends the chat.[/dim]"
            )
            while (turn := _read(console)) is not None:
                _answer(client, conversation, turn, console)
    except ChatFailedError as failure:
        console.print(f"tokka: {failure}", style="red", markup=False)
        return 1
    return 0


def _read(console: Console) -> str | None:
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _answer(client: httpx.Client, conversation: Conversation, turn: str, console: Console) -> None:
    messages = conversation.messages
    if not turn:
        return
    if turn in ("/undo", "/reset"):
        keep = 1 if messages and messages[0]["role"] == "system" else 0
        del messages[max(keep, len(messages) - 2) if turn == "/undo" else keep :]
        return
    messages.append({"role": "user", "content": turn})
    answer, finish_reason = "", None
    try:
        for text, reason in _stream(client, conversation):
            answer += text
            finish_reason = reason
            console.print(text, end="", markup=False)
    except KeyboardInterrupt:
        console.print("\n[dim]stopped[/dim]", end="")
    console.print()
    if finish_reason == "length":
        console.print("[dim]cut off at the length limit; set it with --max-completion-tokens[/dim]")
    messages.append({"role": "assistant", "content": answer})


def _stream(client: httpx.Client, conversation: Conversation) -> Iterator[tuple[str, str | None]]:
    """Yield (new text, finish reason). Raises ChatFailedError."""
    body: dict[str, Any] = {"model": conversation.model, "messages": conversation.messages, "stream": True}
    body |= {
        name: value
        for name in ("max_completion_tokens", "temperature")
        if (value := getattr(conversation, name)) is not None
    }
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise ChatFailedError(_reason(response))
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ChatFailedError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    # Some servers omit the finish reason until the choice ends.
                    yield choice["delta"].get("content") or "", choice.get("finish_reason")
    except httpx.HTTPError as error:
        raise ChatFailedError(f"no connection to {conversation.url}: {error}. Is the server running?") from None


def _first_model(client: httpx.Client) -> str:
    try:
        response = client.get("/v1/models")
    except httpx.HTTPError as error:
        raise ChatFailedError(
            f"no connection to {client.base_url}: {error}. Start a server with `tokka serve`."
        ) from None
    if response.status_code != 200:
        raise ChatFailedError(_reason(response))
    return str(response.json()["data"][0]["id"])


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server returned status {response.status_code}"
