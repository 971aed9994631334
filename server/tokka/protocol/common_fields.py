"""Fields that several endpoints have, each with its bounds and its description."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Model = Annotated[str, Field(min_length=1, max_length=512, description="One of the names in `/v1/models`.")]

# Choice of tokens
Temperature = Annotated[
    float | None,
    Field(ge=0, le=2, description="0: always the most likely token. Default: the value in the model's files, else 1."),
]
TopP = Annotated[float | None, Field(ge=0, le=1, description="Default: the value in the model's files, else 1.")]
TopK = Annotated[int | None, Field(ge=-1, le=2**31 - 1, description="0 or -1: no limit.")]
MinP = Annotated[float | None, Field(ge=0, le=1)]
Penalty = Annotated[float | None, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float | None, Field(gt=0, le=10)]

# Scheduling
Priority = Annotated[int | None, Field(ge=-(2**31), le=2**31 - 1, description="Lower values run sooner.")]
CacheSalt = Annotated[str | None, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.~+/=-]+$")]
