"""Requests and errors of the core, and their form in messages."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import fields

from tokka import errors
from tokka.core import ChatPrompt, GenerateRequest, Prompt, TextPrompt, TokensPrompt
from tokka.errors import ContextLengthExceeded, EngineError, TokkaError
from tokka.protocol.worker.messages import Chat, Error, Open, Text, Tokens

# The errors that an engine raises, by name.
ERRORS: dict[str, type[TokkaError]] = {
    kind.__name__: kind
    for kind in (
        errors.InvalidRequest,
        errors.UnsupportedParameter,
        errors.UnsupportedTask,
        errors.ContextLengthExceeded,
        errors.NoChatTemplate,
        errors.ServerOverloaded,
        errors.ModelStarting,
        errors.SlowReader,
        errors.EngineError,
        errors.EngineDied,
        errors.InternalError,
    )
}


# The fields of a request that its message holds as they are.
_FIELDS = tuple(field.name for field in fields(GenerateRequest) if field.name not in ("prompts", "resume"))


def open_of(number: int, request: GenerateRequest) -> Open:
    values = {name: getattr(request, name) for name in _FIELDS}
    prompts = [packed_prompt(prompt) for prompt in request.prompts]
    return Open(request=number, prompts=prompts, resume=packed_ids(request.resume), **values)


def request_of(message: Open) -> GenerateRequest:
    values = {name: getattr(message, name) for name in _FIELDS}
    prompts = tuple(map(prompt_of, message.prompts))
    return GenerateRequest(prompts=prompts, resume=tuple(ids_of(message.resume)), **values)


def packed_prompt(prompt: Prompt) -> Chat | Text | Tokens:
    match prompt:
        case ChatPrompt():
            return Chat(prompt)
        case TextPrompt():
            return Text(prompt)
        case TokensPrompt(token_ids, param):
            return Tokens(list(token_ids), param)


def prompt_of(packed: Chat | Text | Tokens) -> Prompt:
    return TokensPrompt(packed.token_ids, packed.param) if isinstance(packed, Tokens) else packed.prompt


def packed_ids(token_ids: Sequence[int]) -> bytes:
    """Return token ids of the vocabulary as four bytes each."""
    # An array takes bytes for its own memory. The scripted engine's ids are bytes.
    return array("I", token_ids if isinstance(token_ids, list) else list(token_ids)).tobytes()


def ids_of(packed: bytes) -> list[int]:
    """Raises ValueError if the bytes are not whole numbers."""
    return array("I", packed).tolist()


def packed_error(error: TokkaError) -> Error:
    """Return the message of an engine's error. An error of another kind becomes an EngineError."""
    kind = type(error).__name__
    tokens, maximum = (error.prompt_tokens, error.maximum) if isinstance(error, ContextLengthExceeded) else (None, 0)
    known = kind if kind in ERRORS else EngineError.__name__
    return Error(known, error.message, error.param, error.retry_after_s, error.should_retry, tokens, maximum)


def error_of(packed: Error) -> TokkaError:
    kind = ERRORS.get(packed.kind, EngineError)
    # The classes' own constructors differ, and write the message themselves.
    error = kind.__new__(kind)
    TokkaError.__init__(
        error,
        packed.message,
        param=packed.param,
        retry_after_s=packed.retry_after_s,
        should_retry=packed.should_retry,
    )
    if isinstance(error, ContextLengthExceeded):
        error.prompt_tokens, error.maximum = packed.prompt_tokens, packed.maximum
    return error
