"""The function that models call. Its argument has two possible values, so that a small model's call stays short."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ASK = "What is the weather in Oulu?"
calls: list[str] = []


def get_weather(city: Literal["Oulu", "Turku"]) -> str:
    """Return the weather in a city."""
    calls.append(city)
    return f"Snow in {city}."


class City(BaseModel):
    """The function's arguments, for clients that want a class of them."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Oulu", "Turku"]


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oulu", "Turku"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
