"""Resources of Aitta's API: Aitta's client package can read them, and they contain only true statements."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
import requests
from aitta_client import Client, IncompatibleModelError, Model, StaticAccessTokenSource
from aitta_client.api import data_structures as aitta
from aitta_client.api.errors import (
    APIErrorResponse,
    APIRateLimitError,
    AuthorizationError,
    ServiceUnderMaintenanceError,
    handle_error_responses,
)
from aitta_client.api.wrappers import ModelData

from tokka.api.errors import body_of_error
from tokka.api.path_facts import facts_of
from tokka.downtime import Downtime
from tokka.engine_facts import ModelInfo
from tokka.errors import InvalidApiKey, Maintenance, ModelStarting, RateLimited, TokkaError, UnknownUrl
from tokka.protocol import aitta as documents

CHAT = ModelInfo(8192, 49152, "vllm", "1", has_chat_template=True, max_running=64, gpus=4)
BASE = ModelInfo(2048, 49152, "vllm", "1", has_chat_template=False)


def wire(resource: Any) -> str:
    text: str = resource.model_dump_json(by_alias=True, exclude_none=True)
    return text


def model(info: ModelInfo, name: str = "LumiOpen/Poro-34B") -> aitta.Model:
    return aitta.Model.model_validate_json(wire(documents.model_resource(name, info, ["3"], is_one=True)))


def test_a_chat_model_can_chat_and_says_where() -> None:
    found = model(CHAT)
    assert found.capabilities == {"openai-chat-completion"}
    assert found.links.openai
    assert found.links.openai_chat_completion
    assert found.links.openai_chat_completion.method == aitta.HTTPMethod.POST
    assert found.links.openai_embeddings is None
    assert "8192 tokens" in found.description
    assert "chat" in found.description


def test_a_base_model_claims_no_chat() -> None:
    found = model(BASE)
    assert found.capabilities == set()
    assert found.links.openai is found.links.openai_chat_completion is None
    assert "no chat template" in found.description
    client = Client("http://127.0.0.1:1", StaticAccessTokenSource("none"))
    with pytest.raises(IncompatibleModelError):
        _ = Model(ModelData(found), client).openai_api_url


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("LumiOpen/Poro-34B", "LumiOpen~Poro-34B"),
        ("poro", "poro"),
        ("a/b/c", "a~b~c"),
        ("Ärjä ü?#%2F", "%C3%84rj%C3%A4%20%C3%BC%3F%23%252F"),
    ],
)
def test_model_name_in_a_path_has_tildes_and_is_escaped(name: str, path: str) -> None:
    links = model(CHAT, name).links
    assert links.self.href == f"/model/{path}"
    assert links.metadata
    assert links.metadata.href == f"/model/{path}/metadata"
    segment = unquote(path)
    assert documents.name_of(segment, ["other", name]) == name


def test_unknown_segment_stays_unchanged() -> None:
    assert documents.name_of("a~b", ["a-b", "a"]) == "a~b"


def test_metadata_is_that_of_a_worker_of_vllm() -> None:
    machine = documents.Resources(ram_mb=1000, num_gpus=4, num_cpus=8)
    written = documents.model_metadata("LumiOpen/Poro-34B", CHAT, machine, "lab")
    found = aitta.ModelMetadata.model_validate_json(wire(written))
    assert isinstance(found.worker_config, aitta.VllmWorkerConfig)
    assert found.worker_config.concurrency == 64
    assert found.resources == aitta.SlurmResourcesRequired(ram_mb=1000, num_gpus=4, num_cpus=8)
    assert (found.scopes, found.supports_batching) == ({"lab"}, False)


def test_metadata_without_the_machine_can_be_read() -> None:
    written = documents.model_metadata("LumiOpen/Poro-34B", CHAT, None, "lab")
    found = aitta.ModelMetadata.model_validate_json(wire(written))
    assert isinstance(found.worker_config, aitta.VllmWorkerConfig)
    assert (found.worker_config.model_path, found.worker_config.concurrency) == ("LumiOpen/Poro-34B", 1)
    assert found.resources == aitta.SlurmResourcesRequired(ram_mb=0, num_gpus=0, num_cpus=0)


def test_a_list_of_models_names_each() -> None:
    found = aitta.ModelList.model_validate_json(wire(documents.model_list(["a/b", "c"])))
    assert [(link.name, link.href) for link in found.links.item] == [("a/b", "/model/a~b"), ("c", "/model/c")]


def test_worker_list_links_the_engine_of_each_model() -> None:
    assert documents.worker_list([]).links.item == []
    found = documents.worker_list([("a/b", "2"), ("c", "lab/w1")]).links.item
    assert [link.href for link in found] == ["/worker/a~b/2", "/worker/c/lab~w1"]
    assert documents.name_of("lab~w1", ["w", "lab/w1"]) == "lab/w1"


@pytest.mark.parametrize("ids", [[], ["w1"], ["w1", "w2"]])
def test_model_of_a_fleet_links_all_its_workers(ids: list[str]) -> None:
    text = wire(documents.model_resource("poro", CHAT, ids, is_one=False))
    assert [link["name"] for link in json.loads(text)["_links"]["worker"]] == ids
    assert aitta.Model.model_validate_json(text).id == "poro"
    alone = json.loads(wire(documents.model_resource("poro", CHAT, ids[:1], is_one=True)))["_links"]
    assert alone.get("worker") == ({"href": "/worker/poro/w1", "name": "w1", "method": "GET"} if ids else None)


def test_downtimes_are_items_with_times_in_utc() -> None:
    written = documents.downtime_list([Downtime("down_1", 1_800_000_000, 1_800_003_600, "new GPUs")])
    window = {"begin": "2027-01-15T08:00:00Z", "end": "2027-01-15T09:00:00Z", "reason": "new GPUs"}
    assert written.model_dump(by_alias=True)["_embedded"] == {"item": [{**window, "id": "down_1"}]}


# -- errors -----------------------------------------------------------------------------------------------------


def answered(error: TokkaError, path: str) -> requests.Response:
    response = requests.Response()
    response.status_code = error.status
    response.headers.update(error.headers())
    response._content = body_of_error(error, path, "req_1")
    return response


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidApiKey("no"), AuthorizationError),
        (RateLimited("no", of="requests", retry_after_s=1.2), APIRateLimitError),
        (Maintenance("b", "e", "new GPUs", 60), ServiceUnderMaintenanceError),
        (ModelStarting("no", retry_after_s=5), ServiceUnderMaintenanceError),
        (UnknownUrl("no"), APIErrorResponse),
    ],
)
def test_aitta_package_raises_the_exception_of_each_error(error: TokkaError, kind: type[APIErrorResponse]) -> None:
    with pytest.raises(kind) as raised:
        handle_error_responses(answered(error, "/model"))
    assert (raised.value.error_type, raised.value.error_description) == (error.code, error.message)
    assert raised.value.details == error.details
    if isinstance(raised.value, APIRateLimitError):
        assert raised.value.retry_after == 2


@pytest.mark.parametrize("path", ["/model", "/model/x/y", "/worker", "/worker/x/1", "/status", "/downtimes"])
def test_paths_of_aitta_have_errors_of_oauth(path: str) -> None:
    assert facts_of(path).speaks_oauth


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/models", "/modelx", "/openai/v1/model", "/status.json", "/v1/status"]
)
def test_no_other_path_has(path: str) -> None:
    assert not facts_of(path).speaks_oauth
