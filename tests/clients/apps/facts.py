"""Shared by all client checks: the server's address, the questions, and the report of the facts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

URL = os.environ["TOKKA_URL"]
API = f"{URL}/v1"
MODEL = os.environ["TOKKA_MODEL"]
# Every client can send this header, and the server logs it.
HEADERS = {"x-request-id": os.environ["TOKKA_CHECK"]}

QUESTION = "What is the capital of Japan?"
MAX_TOKENS = 24
PERSON = "Matti Virtanen is 42 years old. Who is he? Answer as JSON."
# The answer contains it after some words.
STOP = " Tokyo"
NO_MODEL = "no-such-model"

_contacted: set[str] = set()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        _contacted.add(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _contacted.add(str(arguments[1][0]))


# The hook sees the sockets of all modules: of the standard library, and of C extensions that go through Python.
sys.addaudithook(_watch)


def error_of(error: BaseException) -> list[str]:
    """Return the class name and the message of a client's exception."""
    return [type(error).__name__, str(error)]


def example() -> str:
    """Run this client's example from docs/clients.md and return its output."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(os.environ["TOKKA_EXAMPLE"], {})
    return printed.getvalue()


def report(**facts: Any) -> None:
    """Print the facts as the last line of the output."""
    print(json.dumps({**facts, "contacted": sorted(_contacted)}))
