"""What is asked: random words of a known length, or what is in a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson

from tokka.bench.failure import BenchFailedError

# The fields of a request that hold its prompt: `prompt` or `messages`.
Content = dict[str, Any]
# All of it is in memory, and once more in the requests of an open loop.
MAX_FILE_BYTES = 64 << 20
# Each is one token of SmolLM2 (and of GPT-2's vocabulary) when a blank precedes it.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
)
WORDS = _TEXT.split()


def synthetic(tokens: int, chance: random.Random) -> Content:
    return {"prompt": " ".join(chance.choices(WORDS, k=tokens))}


def read_prompts(path: Path, api: str) -> tuple[Content, ...]:
    """Read a file of prompts, one on each line; of a .jsonl each line is {"prompt": ...} or {"messages": [...]}."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
    except OSError as error:
        raise BenchFailedError(f"--prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BenchFailedError(f"--prompts {path}: it is not UTF-8 text") from None
    if len(text.encode()) > MAX_FILE_BYTES:
        raise BenchFailedError(f"--prompts {path}: it has more than {MAX_FILE_BYTES >> 20} MiB; give a part of it")
    # Not splitlines(), which splits within JSON strings too.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise BenchFailedError(f"--prompts {path}: there is no line in it")
    if path.suffix != ".jsonl":
        return tuple({"prompt": line.rstrip("\r")} for _, line in lines)
    return tuple(_content(line, api, f"--prompts {path}: line {number}") for number, line in lines)


def _content(line: str, api: str, where: str) -> Content:
    try:
        given = orjson.loads(line)
    except ValueError:
        raise BenchFailedError(f"{where} is no JSON; a file of plain prompts must not be named .jsonl") from None
    match given:
        case {"messages": list() as messages}:
            if api != "chat":
                raise BenchFailedError(f"{where} has messages; use --api chat")
            return {"messages": messages}
        case {"prompt": str() as prompt}:
            return {"prompt": prompt}
    raise BenchFailedError(f'{where} is not {{"prompt": "..."}} or {{"messages": [...]}}')
