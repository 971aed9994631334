"""A process that parses bodies. bodies.py starts it as `python -m tokka.parsing.worker PID [ignore-unknown]`.

It reads a header, the name of a model and a body. It writes a header and a pickle of plain data, or of a refusal.
"""

from __future__ import annotations

import json
import pickle
import resource
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokka.engine.supervision.lifeline import end_with, leave_interrupts_to_the_server
from tokka.engine.supervision.processes import PARSER_NAME
from tokka.errors import InvalidRequest, ThreadsUnsupported, UnsupportedParameter
from tokka.protocol.anthropic.request import CountTokensRequest, MessagesRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.embeddings import EmbeddingRequest
from tokka.protocol.fingerprint import fingerprint_of
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.models import DetokenizeRequest, TokenizeRequest
from tokka.protocol.responses.compaction import CompactRequest
from tokka.protocol.responses.create_event import ResponseCreate
from tokka.protocol.responses.request import ResponsesRequest
from tokka.protocol.scores import RerankRequest, ScoreRequest
from tokka.protocol.validation import validated, without_unknown
from tokka.sandbox.confinement import restrict

PARSABLE: dict[str, Any] = {
    model.__name__: model
    for model in (
        ChatRequest,
        CompletionRequest,
        ResponsesRequest,
        ResponseCreate,
        CompactRequest,
        MessagesRequest,
        CountTokensRequest,
        TokenizeRequest,
        DetokenizeRequest,
        EmbeddingRequest,
        RerankRequest,
        ScoreRequest,
    )
}
REFUSALS: dict[str, type[InvalidRequest]] = {
    error.__name__: error for error in (InvalidRequest, UnsupportedParameter, ThreadsUnsupported)
}
IGNORE_UNKNOWN = "ignore-unknown"
# Lengths of the model's name and of the body; length of the reply.
QUESTION_HEADER = struct.Struct(">HI")
ANSWER_HEADER = struct.Struct(">I")
# Maximum address space of the process, in bytes: a body of 32 MiB takes this much as objects.
_MEMORY_BYTES = 4 << 30


def answer_to(kind: str, raw: bytes, *, ignores_unknown: bool = False) -> bytes:
    """Return the pickled plain data of a body, or the pickled refusal."""
    try:
        answer: Any = (without_unknown if ignores_unknown else validated)(PARSABLE[kind], raw).parsed()
        if isinstance(answer, ParsedGeneration):
            # Hashed here, because a large request would block the server's event loop.
            request = replace(answer.request, fingerprint=fingerprint_of(answer.request))
            answer = replace(answer, request=request)
    except InvalidRequest as refusal:
        answer = (type(refusal).__name__, refusal.message, refusal.param)
    return pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)


def _load_all() -> None:
    """Import everything that parsing needs. Afterwards, the sandbox forbids opening files."""
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"x": {"pattern": "a"}}}}
    fields = {"tools": [{"type": "function", "function": function}], "tool_choice": "required", "temperature": 9}
    chat = {"model": "m", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    anthropic = {"tools": [{"name": "f", "strict": True, "input_schema": function["parameters"]}], "max_tokens": 1}
    for kind in PARSABLE:
        for body in ({}, {**chat, **fields}, {**chat, **anthropic, "tool_choice": {"type": "any"}}):
            answer_to(kind, json.dumps(body).encode())


def main() -> None:
    Path("/proc/self/comm").write_text(PARSER_NAME, encoding="utf-8")
    end_with(int(sys.argv[1]))
    leave_interrupts_to_the_server()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _load_all()
    restrict()
    ignores_unknown = IGNORE_UNKNOWN in sys.argv[2:]
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while header := questions.read(QUESTION_HEADER.size):
        kind_size, size = QUESTION_HEADER.unpack(header)
        kind = questions.read(kind_size).decode()
        answer = answer_to(kind, questions.read(size), ignores_unknown=ignores_unknown)
        answers.write(ANSWER_HEADER.pack(len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    main()
