"""Prompts: random words of a known length, or the prompts in a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson

from tokka.bench.errors import BenchFailedError

# The fields of a request that hold its prompt: `prompt` or `messages`.
Content = dict[str, Any]
# Maximum bytes of a file of prompts. They are in memory, and again in the requests of an open loop.
MAX_FILE_BYTES = 64 << 20
# After a space, each word is one token of SmolLM2 and of GPT-2's vocabulary.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
)
WORDS = _TEXT.split()


def synthetic(tokens: int, chance: random.Random) -> Content:
    """Return a prompt of random words, about one token each."""
    return {"prompt": " ".join(chance.choices(WORDS, k=tokens))}


def read_prompts(path: Path, api: str) -> tuple[Content, ...]:
    """Read a file with one prompt on each line. Raises BenchFailedError.

    Each line of a .jsonl file is {"prompt": ...} or {"messages": [...]}.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
    except OSError as error:
        raise BenchFailedError(f"--prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BenchFailedError(f"--prompts {path}: the file is not UTF-8 text") from None
    if len(text.encode()) > MAX_FILE_BYTES:
        raise BenchFailedError(f"--prompts {path}: the file has more than {MAX_FILE_BYTES >> 20} MiB; use a part of it")
    # Not splitlines(), which also splits within JSON strings.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise BenchFailedError(f"--prompts {path}: the file has no lines")
    if path.suffix != ".jsonl":
        return tuple({"prompt": line.rstrip("\r")} for _, line in lines)
    return tuple(_content(line, api, f"--prompts {path}: line {number}") for number, line in lines)


def _content(line: str, api: str, where: str) -> Content:
    try:
        given = orjson.loads(line)
    except ValueError:
        raise BenchFailedError(f"{where} is not JSON; a file of plain prompts must not be named .jsonl") from None
    match given:
        case {"messages": list() as messages}:
            if api != "chat":
                raise BenchFailedError(f"{where} has messages; use --api chat")
            return {"messages": messages}
        case {"prompt": str() as prompt}:
            return {"prompt": prompt}
    raise BenchFailedError(f'{where} is not {{"prompt": "..."}} or {{"messages": [...]}}')
