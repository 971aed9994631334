"""Aitta's API as its clients read it: resources with links (HAL, `application/hal+json`).

Hrefs are paths below the client's base URL. aitta-client puts that URL before each of them, so they also work behind a
proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field

from tokka.downtime import Downtime
from tokka.engine_facts import ModelInfo
from tokka.protocol.times import format_iso

Capability = Literal["openai-chat-completion", "openai-embeddings"]

_OPENAI = "/openai/v1"


class Link(BaseModel):
    """The place of a resource, and its HTTP method."""

    href: str = Field(description="Path below the server's base URL.")
    name: str | None = None
    method: Literal["GET", "POST"] = "GET"


class CollectionLinks(BaseModel):
    """The links of a collection."""

    self: Link
    item: list[Link]


class Collection(BaseModel):
    """The models, or the workers, that the key may use."""

    links: CollectionLinks = Field(serialization_alias="_links")


class ModelLinks(BaseModel):
    """The links of a served name."""

    self: Link
    collection: Link
    metadata: Link
    worker: Link | list[Link] | None = Field(
        None, description="The engine that runs the model, missing before its first start; of a fleet, all replicas."
    )
    openai: Link | None = Field(None, description="The base URL for OpenAI's clients, if the model can chat or embed.")
    openai_chat_completion: Link | None = Field(None, serialization_alias="openai-chat-completion")
    openai_embeddings: Link | None = Field(None, serialization_alias="openai-embeddings")


class ModelResource(BaseModel):
    """A served name. A base model has no capability here; `/v1/completions` serves it."""

    id: str
    description: str
    capabilities: list[Capability]
    links: ModelLinks = Field(serialization_alias="_links")


class WorkerConfig(BaseModel):
    """How the engine runs the model. `model_path` is the served name, not a file path."""

    model_path: str
    concurrency: int | None = Field(None, description="Maximum choices that run at once. For admin keys only.")
    loading_arguments: dict[str, int]


class Resources(BaseModel):
    """The server's machine, and the GPUs that the model uses. Zeros for keys without the scope `admin`."""

    ram_mb: int
    num_gpus: int
    num_cpus: int


class SelfLinks(BaseModel):
    """The link of a resource to itself."""

    self: Link


class ModelMetadata(BaseModel):
    """Aitta's metadata of a model. Fields without a meaning here are empty. The OpenAPI document describes bodies."""

    id: str
    description: str
    capabilities: list[Capability]
    worker_config: WorkerConfig
    resources: Resources
    software: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    supports_batching: Literal[False] = False
    scopes: list[str] = Field(description="The caller's own tenant only.")
    owner: Literal["tokka"] = "tokka"
    links: SelfLinks = Field(serialization_alias="_links")


class WorkerLinks(BaseModel):
    """The links of an engine."""

    self: Link
    collection: Link
    model: Link


class WorkerResource(BaseModel):
    """An engine that runs the model: the only one, with a new number after it dies, or a replica of a fleet."""

    id: str
    model: str
    state: Literal["stopped", "asleep", "starting", "ready", "draining", "failed"]
    phase: str
    detail: str
    started_at: str = Field(description="ISO 8601, UTC.")
    retry_after_s: int = Field(description="Seconds until the engine is probably ready; 0 if it is.")
    running: int | None = Field(None, description="In-flight choices. For admin keys only.")
    waiting: int | None = Field(
        None, description="Queued choices, those of the model's queue included. For admin keys only."
    )
    links: WorkerLinks = Field(serialization_alias="_links")


class Window(BaseModel):
    """A downtime. Times are ISO 8601, UTC."""

    begin: str
    end: str
    reason: str


class DowntimeResource(Window):
    """A downtime with its id."""

    id: str


class DowntimeItems(BaseModel):
    """The downtimes of a list."""

    item: list[DowntimeResource]


class DowntimeList(BaseModel):
    """Current and future downtimes, ordered by begin."""

    links: SelfLinks = Field(serialization_alias="_links")
    embedded: DowntimeItems = Field(serialization_alias="_embedded")


class AccessToken(BaseModel):
    """A token to send instead of the key, valid for `expires_in` seconds."""

    access_token: str
    expires_in: int
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a type of token


class OAuthError(BaseModel):
    """An error in the form of OAuth (RFC 6749), on Aitta's paths only. `details`: the times of a downtime."""

    error: str
    error_description: str
    error_uri: str | None = None
    details: dict[str, str] | None = None


def name_of(segment: str, names: Sequence[str]) -> str:
    """Return the name, of a model or a worker, of a path segment with `~` for `/`. Return an unknown one unchanged."""
    return next((name for name in names if _tilde(name) == segment), segment)


def model_list(names: Sequence[str]) -> Collection:
    return _collection("/model", [Link(href=_model(name), name=name) for name in names])


def model_resource(name: str, info: ModelInfo, workers: Sequence[str], *, is_one: bool) -> ModelResource:
    """Return the resource of a served name. `is_one`: there is never more than one worker."""
    links = [_link(name, worker) for worker in workers]
    can_chat, can_embed = _can_chat(info), _is_embedder(info)
    chat = Link(href=f"{_OPENAI}/chat/completions", method="POST")
    return ModelResource(
        id=name,
        description=_description(name, info),
        capabilities=_capabilities(info),
        links=ModelLinks(
            self=Link(href=_model(name), name=name),
            collection=Link(href="/model"),
            metadata=Link(href=f"{_model(name)}/metadata"),
            worker=next(iter(links), None) if is_one else links,
            openai=Link(href=_OPENAI) if can_chat or can_embed else None,
            openai_chat_completion=chat if can_chat else None,
            openai_embeddings=Link(href=f"{_OPENAI}/embeddings", method="POST") if can_embed else None,
        ),
    )


def model_metadata(name: str, info: ModelInfo, machine: Resources | None, tenant: str) -> ModelMetadata:
    """Return the metadata of a served name.

    `machine`: for admin keys only. Without it, the numbers are zeros, because Aitta's clients need numbers.
    """
    return ModelMetadata(
        id=name,
        description=_description(name, info),
        capabilities=_capabilities(info),
        worker_config=WorkerConfig(
            model_path=name,
            concurrency=info.max_running if machine else None,
            loading_arguments={"max_model_len": info.max_model_len},
        ),
        resources=machine or Resources(ram_mb=0, num_gpus=0, num_cpus=0),
        scopes=[tenant],
        links=SelfLinks(self=Link(href=f"{_model(name)}/metadata")),
    )


def worker_list(workers: Sequence[tuple[str, str]]) -> Collection:
    """Return the current engines: the name by which the key may call each model, and the engine's id."""
    return _collection("/worker", [_link(name, worker) for name, worker in workers])


def worker_links(name: str, worker: str) -> WorkerLinks:
    return WorkerLinks(
        self=_link(name, worker),
        collection=Link(href="/worker"),
        model=Link(href=_model(name), name=name),
    )


def window(downtime: Downtime) -> Window:
    return Window(begin=format_iso(downtime.begin), end=format_iso(downtime.end), reason=downtime.reason)


def downtime_list(downtimes: Sequence[Downtime]) -> DowntimeList:
    items = [DowntimeResource(id=downtime.id, **window(downtime).model_dump()) for downtime in downtimes]
    return DowntimeList(links=SelfLinks(self=Link(href="/downtimes")), embedded=DowntimeItems(item=items))


def _collection(href: str, items: list[Link]) -> Collection:
    return Collection(links=CollectionLinks(self=Link(href=href), item=items))


def _capabilities(info: ModelInfo) -> list[Capability]:
    capabilities: list[Capability] = []
    if _can_chat(info):
        capabilities.append("openai-chat-completion")
    if _is_embedder(info):
        capabilities.append("openai-embeddings")
    return capabilities


def _can_chat(info: ModelInfo) -> bool:
    return info.has_chat_template and "generate" in info.tasks


def _is_embedder(info: ModelInfo) -> bool:
    # Only the scripted engine does both. It is described as the language model that it stands for.
    return "embed" in info.tasks and "generate" not in info.tasks


def _description(name: str, info: ModelInfo) -> str:
    if _is_embedder(info):
        return f"{name}, a model that turns a text of up to {info.max_model_len} tokens into a vector."
    length = f"prompt and completion together have room for {info.max_model_len} tokens"
    if info.has_chat_template:
        return f"{name}, a language model that answers the messages of a chat, all in text; {length}."
    return f"{name}, a language model that continues a text, and has no chat template; {length}."


def _tilde(name: str) -> str:
    return name.replace("/", "~")


def _model(name: str) -> str:
    return f"/model/{quote(_tilde(name), safe='')}"


def _link(name: str, worker: str) -> Link:
    """Return the link of a worker."""
    return Link(href=f"/worker/{quote(_tilde(name), safe='')}/{quote(_tilde(worker), safe='')}", name=worker)
