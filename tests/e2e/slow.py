"""The scripted engine with its delays, and a question for it."""

from __future__ import annotations

from typing import Any

from tests.program import Program


def slow_engine(**options: Any) -> list[str]:
    return [
        "--engine",
        "fake",
        *(item for name, value in options.items() for item in ("--engine-arg", f"{name}={value}")),
    ]


def question(program: Program, **fields: Any) -> dict[str, Any]:
    return {"model": program.model or "fake", "messages": [{"role": "user", "content": "Hi"}], **fields}
