"""What every check of a client shares: where the server is, what is asked, how facts get out."""

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
# A header that every client can be told to send; the server's log has it.
HEADERS = {"x-request-id": os.environ["TOKKA_CHECK"]}

QUESTION = "What is the capital of Japan?"
MAX_TOKENS = 24
PERSON = "Matti Virtanen is 42 years old. Who is he? Answer as JSON."
# Comes in the answer, after some words.
STOP = " Tokyo"
NO_MODEL = "no-such-model"

_contacted: set[str] = set()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        _contacted.add(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _contacted.add(str(arguments[1][0]))


# Sees every module's sockets, those of the standard library and of C extensions that go through Python.
sys.addaudithook(_watch)


def error_of(error: BaseException) -> list[str]:
    """Return a client's own exception as its class and what it says."""
    return [type(error).__name__, str(error)]


def example() -> str:
    """Run the document's example of this client and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(os.environ["TOKKA_EXAMPLE"], {})
    return printed.getvalue()


def report(**facts: Any) -> None:
    """Print the facts as the last line of the output."""
    print(json.dumps({**facts, "contacted": sorted(_contacted)}))
