"""Requests and responses of /admin/fleet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tokka.engine_facts import ModelState
from tokka.protocol.admin import ModelName
from tokka.protocol.common import WireModel

# The fleet file allows no more.
_MAX_REPLICAS = 1024
# Workers' ids have at most 64 characters; a longer one is not found.
_MAX_ID = 128


class ScaleRequest(WireModel):
    """A fixed number of replicas."""

    model: ModelName
    replicas: Annotated[int, Field(ge=0, le=_MAX_REPLICAS)] | None = Field(
        description="Number of replicas. null: let the requests decide, between the file's minimum and maximum."
    )


class DrainRequest(WireModel):
    """Replicas to replace. They finish their in-flight requests first."""

    model: ModelName
    replica: Annotated[str, Field(min_length=1, max_length=_MAX_ID)] | None = Field(
        None, description="Id of one replica. Default: all replicas of the model."
    )


class ReplicaObject(BaseModel):
    """One worker, from its start to its end."""

    id: str
    state: Literal["starting", "ready", "draining"]
    phase: str | None = Field(description="Phase of the engine's start. null: not connected yet, or not starting.")
    node: str = Field(description="Host name. Empty until the worker has connected or its launcher knows it.")
    pid: int | None = Field(description="Process id on its node. null: not known.")
    launcher: str | None = Field(description="The launcher that started it. null: an operator did.")
    revision: str = Field(description="Hash of the settings with which the worker was started.")
    running: int = Field(description="In-flight requests, those that wait for the engine included.")


class FleetModelObject(BaseModel):
    """One model of the fleet file, with its replicas."""

    name: str
    state: ModelState
    fixed: int | None = Field(description="Number of replicas that an operator has set. null: the requests decide.")
    failure: str | None = Field(description="Why a worker last ended or failed to start. null: none has.")
    replicas: list[ReplicaObject]


class FleetStatus(BaseModel):
    """The models of the fleet, in the order of its file."""

    models: list[FleetModelObject]


class FleetUpdate(BaseModel):
    """Names of the models whose replicas are replaced, because their entry of the file has changed."""

    replaced: list[str]
