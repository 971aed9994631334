"""The form that structured answers are asked in."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Person(BaseModel):
    name: str = Field(max_length=40)
    age: int = Field(ge=0, le=150)
    mood: Literal["calm", "cheerful", "tired"]
