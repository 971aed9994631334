"""The response of POST /v1/chat/completions: from events to chunks, and from chunks to a plain response."""

from __future__ import annotations

from typing import Any, assert_never

from tokka.core import (
    Accepted,
    ChoiceDone,
    Embedding,
    Event,
    Finished,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from tokka.protocol.chunks import AnswerForm, Chunks, Fold, StreamEncoder, fold_ending
from tokka.protocol.common import new_id, now_s, prompt_logprobs_list, token_text
from tokka.protocol.folding import JsonItems, JsonList, JsonObject, JsonText, Piece

CHAT_ID_PREFIX = "chatcmpl-"


class ChatEncoder(StreamEncoder):
    """Encode events as chunks. `ChatFold` makes the plain response of the same chunks."""

    def __init__(self, form: AnswerForm, request_id: str, fingerprint: str) -> None:
        head = {
            "id": form.id_of(CHAT_ID_PREFIX, request_id),
            "object": "chat.completion.chunk",
            "created": now_s(),
            "model": form.model,
            "system_fingerprint": fingerprint,
            "service_tier": "default",
        }
        self._form = form
        self._logprobs = form.alternatives is not None
        super().__init__(Chunks(form, head), scored=self._logprobs)
        # Choices that have text or tool calls already.
        self._begun: set[int] = set()

    def feed(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextDelta():
                return self._delta(event)
            case ReasoningDelta() if not self._form.shows_reasoning:
                return []
            case ReasoningDelta(index, text):
                choice = _choice(index, {"reasoning_content": text, "reasoning": text})
                return [self._chunks.of_text(choice, text)]
            case ToolCallDelta():
                self._begun.add(event.index)
                choice = _choice(event.index, {"tool_calls": [_call_delta(event)]})
                return [self._chunks.of_text(choice, event.arguments)]
            case ChoiceDone():
                choice = {**_choice(event.index, self._last_delta(event.index)), "finish_reason": event.finish_reason}
                return [self._chunks.of({**choice, "stop_reason": event.stop_reason})]
            case Accepted():
                return self._begin(event)
            case Finished(usage):
                return self._chunks.end(usage)
            case PromptLogprobs():
                return [self._chunks.of_prompt(prompt_logprobs=prompt_logprobs_list(event))]
            case PromptEcho() | Embedding():
                return []
            case _:
                assert_never(event)

    def fold(self) -> Fold:
        return ChatFold(self._logprobs)

    def _begin(self, event: Accepted) -> list[dict[str, Any]]:
        self._chunks.begin(event.prompt_token_ids)
        chunks = []
        # A message of tool calls alone has no content.
        content = self._form.echo if self._form.echo or self._form.has_content else None
        for index in range(self._form.choices):
            chunk = self._chunks.of(_choice(index, {"role": "assistant", "content": content, "refusal": None}))
            if self._chunks.shows_token_ids and index == 0:
                chunk["prompt_token_ids"] = list(event.prompt_token_ids[0])
            chunks.append(chunk)
        return chunks

    def _delta(self, event: TextDelta) -> list[dict[str, Any]]:
        if not self._chunks.count(event):
            return []
        choice = self._text_choice(event.index, event.text)
        if self._logprobs:
            choice["logprobs"] = _logprobs_object(event.logprobs or (), as_ids=self._form.names_ids)
        return [self._chunks.of_delta(choice, event)]

    def _last_delta(self, index: int) -> dict[str, Any]:
        """Return empty content for a choice that could be tool calls alone but has neither tool calls nor text."""
        has_content = self._form.echo or self._form.has_content or index in self._begun
        return {} if has_content else {"content": ""}

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        self._begun.add(index)
        return _choice(index, {"content": text})


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call_delta(event: ToolCallDelta) -> dict[str, Any]:
    if event.name is None:
        return {"index": event.call_index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.call_index, "id": new_id("call_"), "type": "function", "function": function}


class ChatFold(Fold):
    """Fold a stream of chunks into a chat.completion object."""

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._prompt_logprobs = JsonList()

    def add(self, chunk: dict[str, Any]) -> None:
        self._answer = self._answer or {**chunk, "object": "chat.completion"}
        self._answer["usage"] = chunk["usage"]
        self._prompt_logprobs.extend(chunk.get("prompt_logprobs", ()))
        for choice in chunk["choices"]:
            index = choice["index"]
            if (folded := self._choices.get(index)) is None:
                folded = self._choices[index] = _empty_choice(index, self._logprobs)
            _fold_choice(folded, choice)

    def pieces(self) -> list[Piece]:
        choices = (_finished_choice(self._choices[index]) for index in sorted(self._choices))
        # vLLM's clients read these without checking that they are present.
        of_prompt = {"prompt_token_ids": None, "prompt_logprobs": self._prompt_logprobs or None}
        return JsonObject({**of_prompt, **self._answer, "choices": JsonItems(choices)}).pieces()


def _empty_choice(index: int, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": JsonText(), "refusal": None, "annotations": []}
    scores = JsonList() if logprobs else None
    ending = {"finish_reason": None, "stop_reason": None, "token_ids": None}
    return {"index": index, "message": message, "logprobs": scores, **ending}


def _fold_choice(folded: dict[str, Any], choice: dict[str, Any]) -> None:
    message, delta = folded["message"], choice["delta"]
    if text := delta.get("content"):
        message["content"].add(text)
    if reasoning := delta.get("reasoning_content"):
        message.setdefault("reasoning_content", JsonText()).add(reasoning)
    for piece in delta.get("tool_calls", ()):
        _fold_call(message.setdefault("tool_calls", []), piece)
    if logprobs := choice["logprobs"]:
        folded["logprobs"].extend(logprobs["content"])
    fold_ending(folded, choice)


def _fold_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    function = piece["function"]
    if piece["index"] == len(calls):
        calls.append({"id": piece["id"], "name": function["name"], "arguments": JsonText()})
    calls[piece["index"]]["arguments"].add(function["arguments"])


def _finished_choice(folded: dict[str, Any]) -> JsonObject:
    message = folded["message"]
    calls = message.get("tool_calls", [])
    if calls:
        message["tool_calls"] = JsonItems(map(_finished_call, calls))
    if calls and not message["content"]:
        # As at OpenAI: null if there are only tool calls.
        message["content"] = None
    if "reasoning_content" in message:
        message["reasoning"] = message["reasoning_content"]
    scores = folded["logprobs"]
    logprobs = None if scores is None else JsonObject({"content": scores, "refusal": None})
    return JsonObject({**folded, "message": JsonObject(message), "logprobs": logprobs})


def _finished_call(call: dict[str, Any]) -> JsonObject:
    function = JsonObject({"name": call["name"], "arguments": call["arguments"]})
    return JsonObject({"id": call["id"], "type": "function", "function": function})


def _logprobs_object(tokens: tuple[TokenLogprob, ...], *, as_ids: bool) -> dict[str, Any]:
    return {
        "content": [
            {**_logprob(token, as_ids), "top_logprobs": [_logprob(top, as_ids) for top in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _logprob(token: TokenLogprob, as_id: bool) -> dict[str, Any]:
    return {"token": token_text(token, as_id=as_id), "logprob": token.logprob, "bytes": list(token.bytes)}
