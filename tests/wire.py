"""A minimal client. It shows the data that the server sent, not a library's reading of it."""

from __future__ import annotations

import json
import ssl
from typing import Any

import httpx

# One context for all clients, which speak plain HTTP anyway. Creating one reads all certificates of the machine: 20 ms
# of CPU.
TLS = ssl.create_default_context()


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunks of a stream; fail if it did not end properly."""
    *lines, rest = without_comments(response.text).split("\n\n")
    assert rest == ""
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def chunks_of(text: str) -> list[dict[str, Any]]:
    """Return the chunks of a stream, including errors, however it ended."""
    events = without_comments(text).split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]


def without_comments(text: str) -> str:
    """Return a stream without its keep-alive comments."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(":"))


def raw_completion(body: dict[str, Any], **headers: str) -> bytes:
    """Return a whole request as bytes, for tests that send it by hand."""
    content = json.dumps(body).encode()
    fixed = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(content))}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {**fixed, **headers}.items()]
    return "\r\n".join(["POST /v1/completions HTTP/1.1", *lines, "", ""]).encode() + content


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response)


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """Return the whole text of a stream's chunks, chat or completion."""
    parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(part["delta"].get("content") or "" if "delta" in part else part["text"] for part in parts)


def endings(chunks: list[dict[str, Any]]) -> list[tuple[int, str, Any]]:
    """Return (index, finish_reason, stop_reason) of each choice that ended."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    return [(choice["index"], choice["finish_reason"], choice["stop_reason"]) for choice in choices]


def folded(chunks: list[dict[str, Any]], index: int = 0) -> tuple[str, list[tuple[str, str]], str]:
    """Return the sum of a chat stream's deltas of a choice: text, tool calls, finish_reason."""
    calls: list[tuple[str, str]] = []
    text, finish = "", ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            for piece in choice["delta"].get("tool_calls", ()):
                if "id" in piece:
                    assert piece["index"] == len(calls)
                    calls.append((piece["function"]["name"], ""))
                name, arguments = calls[piece["index"]]
                calls[piece["index"]] = (name, arguments + piece["function"]["arguments"])
    return text, calls, finish


def calls_of(choice: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and arguments of each tool call in a choice of a plain response."""
    calls = choice["message"].get("tool_calls", [])
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """Return the sum of a metric's series with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))


def scores(client: httpx.Client, model: str, prompts: list[str]) -> list[float]:
    """Return the logprobs of the prompts' tokens, except each first one. Sends one prompt at a time.

    They show whether two engines compute the same. Generated texts may diverge at a tie.
    """
    body = {"model": model, "max_tokens": 0, "echo": True, "logprobs": 0}
    answers = [post(client, "/v1/completions", {**body, "prompt": prompt}) for prompt in prompts]
    return [score for answer in answers for score in answer["choices"][0]["logprobs"]["token_logprobs"][1:]]


def forced(text: str) -> dict[str, Any]:
    """Return the fields that force the model to write exactly this text.

    Two generations of the real engine may differ: under load the batches differ, and so do the last bits of the logits.
    """
    return {"structured_outputs": {"choice": [text]}}
