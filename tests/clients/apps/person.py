"""The form that structured answers are asked in."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Person(BaseModel):
    # Else a small model may go on to invent fields until its limit.
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=40)
    age: int = Field(ge=0, le=150)
    mood: Literal["calm", "cheerful", "tired"]
