"""The schema that the checks request for structured outputs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Person(BaseModel):
    # Without this, a small model may invent fields until its token limit.
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=40)
    age: int = Field(ge=0, le=150)
    mood: Literal["calm", "cheerful", "tired"]
