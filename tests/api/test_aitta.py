"""Aitta's own client package on the real server: its users' programs work after a change of the address."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import openai
import pytest
from aitta_client import (
    AccessTokenWillExpire,
    APIErrorResponse,
    APIKeyAccessTokenSource,
    APIRateLimitError,
    AuthorizationError,
    Client,
    Model,
    ModelNotFoundError,
    ServiceUnderMaintenanceError,
    StaticAccessTokenSource,
)
from aitta_client.api.data_structures import APIError, ModelFromHubRequest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.program import Program, eventually, running
from tests.wire import metric
from tokka.accounts.downtimes import new_downtime
from tokka.accounts.ledger import open_ledger
from tokka.accounts.tokens import _signing_key_of

ADMIN_KEY = "the-admin-key-of-the-test"
KEY = "the-user-key-of-the-test"
# Two names of one model. The first one has a slash, as on Aitta.
NAME, ALIAS = "LumiOpen/Poro-34B-chat", "poro"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[Program]:
    keys = ("--admin-key", ADMIN_KEY, "--api-key", KEY, "--state-dir", str(folder))
    names = ("--served-model-name", NAME, "--served-model-name", ALIAS)
    with running("--engine", "fake", "--engine-arg", "token_delay_s=0.005", *keys, *names) as program:
        yield program


def aitta(program: Program, secret: str = KEY, **options: Any) -> Client:
    return Client(program.url, APIKeyAccessTokenSource(secret, program.url), **options)


def issue(program: Program, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{program.url}/admin/keys", json={"name": "alice", **fields}, headers={"authorization": f"Bearer {ADMIN_KEY}"}
    )
    issued: dict[str, Any] = answer.json()
    return issued


def get(program: Program, path: str, credential: str = KEY, method: str = "GET") -> httpx.Response:
    return httpx.request(method, f"{program.url}{path}", headers={"authorization": f"Bearer {credential}"})


def token_of(program: Program, secret: str = KEY) -> str:
    token: str = get(program, "/authenticate_with_key", secret).json()["access_token"]
    return token


# -- use of the package -----------------------------------------------------------------------------------------


def test_a_models_address_goes_into_the_openai_package_as_it_is(program: Program) -> None:
    client = aitta(program)
    model = Model.load(NAME, client)
    assert (model.id, model.model_capabilities) == (NAME, {"openai-chat-completion"})
    chat = openai.OpenAI(api_key=client.access_token_source.get_access_token(), base_url=model.openai_api_url)
    message: ChatCompletionUserMessageParam = {"role": "user", "content": "hello"}
    answer = chat.chat.completions.create(model=model.id, messages=[message], max_tokens=5)
    assert answer.usage
    assert answer.usage.completion_tokens == 5
    chat.close()
    # Metrics and the access log have one path for both prefixes.
    with httpx.Client(base_url=program.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}) as http:
        assert metric(http, "tokka_requests_total", endpoint="/v1/chat/completions", model=NAME) >= 1
        assert metric(http, "tokka_tokens_total", tenant="key-1", kind="completion") >= 5
    eventually(lambda: "/v1/chat/completions" in [line.get("path") for line in program.log], within_s=10)
    assert "/openai/v1/chat" not in str(program.log)


def test_every_name_is_listed_and_leads_to_its_model(program: Program) -> None:
    client = aitta(program)
    assert [(one.id, one.url_endpoint) for one in client.get_model_list()] == [
        *((NAME, "/model/LumiOpen~Poro-34B-chat"), (ALIAS, "/model/poro"))
    ]
    for reference in client.get_model_list():
        model = Model.load(reference, client)
        assert model.id == reference.id in model.description
        metadata = model.get_metadata()
        assert metadata.worker_config.model_path == reference.id
        assert metadata.resources.num_gpus == 0
        assert metadata.capabilities == model.model_capabilities


def test_a_key_sees_its_own_models_alone(program: Program) -> None:
    client = aitta(program, issue(program, models=[ALIAS])["key"])
    assert [one.id for one in client.get_model_list()] == [ALIAS]
    with pytest.raises(ModelNotFoundError):
        Model.load(NAME, client)
    with pytest.raises(APIErrorResponse) as refused:
        client._make_request("/model/LumiOpen~Poro-34B-chat")
    assert refused.value.error_type == "model_not_found"
    assert NAME not in str(refused.value.error_description).partition("Served to you")[2]
    nobody = aitta(program, issue(program, models=["another"])["key"])
    assert nobody.get_model_list() == []
    assert nobody._make_request("/worker").json()["_links"]["item"] == []


def test_worker_of_a_model_reports_its_state(program: Program) -> None:
    client = aitta(program)
    links = client._make_request("/model/LumiOpen~Poro-34B-chat").json()["_links"]
    worker = client._make_request(links["worker"]["href"]).json()
    assert (worker["model"], worker["state"], worker["retry_after_s"]) == (NAME, "ready", 0)
    assert worker["_links"]["model"]["href"] == links["self"]["href"]
    (listed,) = client._make_request("/worker").json()["_links"]["item"]
    assert listed["href"] == links["worker"]["href"]
    with pytest.raises(APIErrorResponse) as refused:
        client._make_request("/worker/poro/2")
    assert refused.value.error_type == "worker_not_found"


def test_only_admin_keys_see_the_machine_and_its_load(program: Program) -> None:
    for secret, is_admin in ((KEY, False), (token_of(program, ADMIN_KEY), False), (ADMIN_KEY, True)):
        metadata = get(program, "/model/poro/metadata", secret).json()
        assert all((number > 0) is is_admin for name, number in metadata["resources"].items() if name != "num_gpus")
        assert ("concurrency" in metadata["worker_config"]) is is_admin
        worker = get(program, "/worker/poro/1", secret).json()
        assert ({"running", "waiting"} <= set(worker)) is is_admin
        assert ("running" in worker or "waiting" in worker) is is_admin
        # Aitta's client reads the metadata with and without the machine's data.
        assert Model.load(ALIAS, aitta(program, ADMIN_KEY if is_admin else KEY)).get_metadata().resources.ram_mb >= 0


def test_machine_and_load_are_hidden_when_the_server_has_no_keys(fake: Program) -> None:
    metadata, worker = (httpx.get(f"{fake.url}{path}").json() for path in ("/model/fake/metadata", "/worker/fake/1"))
    assert set(metadata["resources"].values()) == {0}
    assert not {"running", "waiting"} & set(worker)


def test_operator_actions_are_refused_with_aittas_error_format(program: Program) -> None:
    client = aitta(program)
    model = Model.load(ALIAS, client)
    metadata = model.get_metadata()
    changes: list[Callable[[], object]] = [
        lambda: model.update_metadata(metadata),
        lambda: client.add_model(metadata),
        lambda: client.add_model_from_huggingface(ModelFromHubRequest(model_id="a/b", owner="public")),
    ]
    for change in changes:
        with pytest.raises(APIErrorResponse) as refused:
            change()
        assert refused.value.error_type == "method_not_allowed"


# -- tokens -----------------------------------------------------------------------------------------------------


def test_both_sources_of_tokens_work_and_a_key_is_one(program: Program) -> None:
    token = token_of(program)
    with pytest.warns(AccessTokenWillExpire):
        short = StaticAccessTokenSource(token)
    for source in (short, StaticAccessTokenSource(KEY)):
        assert Client(program.url, source).get_model_list()


def test_a_key_gives_a_token_with_the_time_it_is_good_for(program: Program) -> None:
    answer = get(program, "/authenticate_with_key")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    body = answer.json()
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert (body["token_type"], claims["exp"] - claims["iat"]) == ("Bearer", body["expires_in"])
    assert claims["sub"] == "key-1"
    assert body["access_token"] not in str(program.log)


def test_token_that_no_server_hands_out_is_a_401(program: Program) -> None:
    claims = jwt.decode(token_of(program), options={"verify_signature": False})

    def status(**changed: Any) -> int:
        own = {name: value for name, value in (claims | changed).items() if value != "missing"}
        # The owner of a key can sign any claims with it.
        token = jwt.PyJWS().encode(json.dumps(own).encode(), _signing_key_of(KEY), "EdDSA", headers={"kid": "key-1"})
        return get(program, "/v1/models", token).status_code

    assert status() == 200
    invalid: list[Any] = ["missing", None, "x", 1.5, True, [], -1, 10**40]
    for wrong in invalid:
        assert [status(**{name: wrong}) for name in claims] == [401] * 4
    assert status(exp=claims["exp"] + 1) == 401


def test_front_ends_of_one_database_know_each_others_tokens(program: Program, folder: Path) -> None:
    issued = issue(program)
    with running("--engine", "fake", "--state-dir", str(folder)) as other:
        for one, another in ((program, other), (other, program)):
            token = token_of(one, issued["key"])
            assert get(another, "/v1/models", token).status_code == 200


def test_a_token_gets_no_other_token_and_administers_nothing(program: Program) -> None:
    token = token_of(program, ADMIN_KEY)
    refused = get(program, "/authenticate_with_key", token)
    assert (refused.status_code, refused.json()["error"]) == (403, "permission_denied")
    assert get(program, "/v1/models", token).status_code == 200
    assert get(program, "/admin/keys", token).status_code == 403


def test_revoking_a_key_ends_its_tokens_at_once(program: Program) -> None:
    issued = issue(program)
    client = aitta(program, issued["key"])
    assert client.get_model_list()
    assert get(program, f"/admin/keys/{issued['id']}", ADMIN_KEY, "DELETE").status_code == 200
    with pytest.raises(AuthorizationError):
        client.get_model_list()


def test_a_wrong_key_is_an_authorization_error_in_every_place(program: Program) -> None:
    with pytest.raises(AuthorizationError):
        aitta(program, f"{token_of(program)[:-3]}abc").get_model_list()
    for secret in ("wrong", "a.b.c"):
        with pytest.raises(AuthorizationError):
            Client(program.url, StaticAccessTokenSource(secret)).get_model_list()
        with pytest.raises(AuthorizationError):
            aitta(program, secret).get_model_list()


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        *(("GET", path, 404, "unknown_url") for path in ("/model/", "/model/a/b", "/worker/poro", "/status/x")),
        *(("DELETE", path, 405, "method_not_allowed") for path in ("/model", "/model/poro", "/status", "/downtimes")),
        ("POST", "/authenticate_with_key", 405, "method_not_allowed"),
    ],
)
def test_refusals_have_the_form_of_oauth(program: Program, method: str, path: str, status: int, error: str) -> None:
    answer = get(program, path, method=method)
    assert (answer.status_code, APIError.model_validate(answer.json(), strict=True).error) == (status, error)


def test_early_refusal_has_the_error_format_of_its_path(program: Program) -> None:
    for path, is_oauths in (("/model", True), ("/v1/models", False)):
        answer = httpx.get(f"{program.url}{path}", headers={"x-long": "x" * 100_000})
        assert (answer.status_code, isinstance(answer.json()["error"], str)) == (431, is_oauths)


@pytest.mark.parametrize("path", ["/openai/v1/nothing", "/v1/nothing", "/openai/model", "/openai/v1", "/nothing"])
def test_on_other_paths_they_have_openais(program: Program, path: str) -> None:
    answer = get(program, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


def test_alias_requires_a_key_like_its_original_path(program: Program) -> None:
    refused = httpx.get(f"{program.url}/openai/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


def test_head_is_answered_as_get_is(program: Program) -> None:
    for path in ("/model", "/model/poro", "/worker", "/status", "/downtimes"):
        answer = get(program, path, method="HEAD")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/hal+json")


def test_aitta_client_retries_after_the_rate_limit(program: Program) -> None:
    secret = issue(program, limits={"rpm": 120})["key"]
    client = aitta(program, secret)

    def ask_on() -> None:
        for _ in range(1000):
            client.get_model_list()

    with pytest.raises(APIRateLimitError) as refused:
        ask_on()
    assert refused.value.retry_after == 1
    patient = Client(program.url, client.access_token_source, retry_on_rate_limit_error=True)
    assert patient.get_model_list()


# -- downtimes --------------------------------------------------------------------------------------------------


@contextmanager
def downtime(program: Program, folder: Path, begin: int, end: int) -> Iterator[str]:
    """Add a downtime as `tokka downtime` does. Yield its id once the server knows it, and remove it afterwards."""
    now = int(time.time())
    planned = new_downtime(now + begin, now + end, "new GPUs", now)

    def is_known() -> bool:
        items = get(program, "/downtimes").json()["_embedded"]["item"]
        return planned.id in [item["id"] for item in items]

    with closing(open_ledger(None, folder, 10.0)) as ledger:
        ledger.add_downtime(planned)
        try:
            eventually(is_known, within_s=10)
            yield planned.id
        finally:
            ledger.remove_downtime(planned.id)
            eventually(lambda: not is_known(), within_s=10)


def test_downtime_keeps_streams_and_refuses_new_requests(program: Program, folder: Path) -> None:
    body = {"model": ALIAS, "prompt": "x", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    client = aitta(program)
    assert get(program, "/status").json() == "OK"
    with httpx.stream("POST", f"{program.url}/v1/completions", json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        with downtime(program, folder, -5, 7200):
            refused = httpx.post(
                f"{program.url}/openai/v1/completions", json={**body, "max_tokens": 1}, headers=headers
            )
            window = get(program, "/status").json()
            with pytest.raises(ServiceUnderMaintenanceError) as raised:
                client.get_model_list()
            ready = httpx.get(f"{program.url}/readyz")
            # A client that waits for the end of the downtime can still use these endpoints.
            assert get(program, "/worker/poro/1", ADMIN_KEY).json()["running"] == 1
            assert get(program, "/authenticate_with_key").status_code == 200
        rest = list(lines)
    assert set(window) == {"begin", "end", "reason"}
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "maintenance")
    assert all(text in refused.json()["error"]["message"] for text in window.values())
    assert refused.json()["error"]["details"] == window
    assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("120", "false")
    assert raised.value.details == window
    assert (ready.status_code, ready.json()["status"]) == (503, "maintenance")
    assert ready.json()["detail"] == f"until {window['end']}"
    assert "data: [DONE]" in rest
    assert [json.loads(line[6:])["choices"][0]["finish_reason"] for line in rest if '"length"' in line] == ["length"]
    assert client.get_model_list()


def test_a_downtime_to_come_is_announced_and_refuses_nothing(program: Program, folder: Path) -> None:
    with downtime(program, folder, 3600, 7200) as downtime_id:
        (announced,) = get(program, "/downtimes").json()["_embedded"]["item"]
        assert (announced["id"], announced["reason"]) == (downtime_id, "new GPUs")
        assert get(program, "/status").json() == "OK"
        assert aitta(program).get_model_list()
        assert httpx.get(f"{program.url}/readyz").status_code == 200


# -- other servers ----------------------------------------------------------------------------------------------


def test_without_keys_the_package_works_with_any(fake: Program) -> None:
    client = aitta(fake, "none")
    model = Model.load("fake", client)
    assert model.openai_api_url == f"{fake.url}/openai/v1"
    assert model.get_metadata().scopes == {"anonymous"}


def test_model_list_has_only_names_when_the_engine_is_starting() -> None:
    with running("--engine", "fake", "--engine-arg", "start_delay_s=600", wait=False) as program:
        client = aitta(program)
        assert [one.id for one in client.get_model_list()] == ["fake"]
        with pytest.raises(ServiceUnderMaintenanceError) as raised:
            Model.load("fake", client)
        assert raised.value.error_type == "model_starting"
        worker = client._make_request("/worker/fake/1").json()
        assert (worker["state"], worker["phase"]) == ("starting", "loading weights")


@pytest.mark.engine
def test_a_real_model_answers_by_way_of_the_package(smollm2: Program) -> None:
    client = aitta(smollm2, "none")
    model = Model.load("SmolLM2-135M-Instruct", client)
    assert "8192 tokens" in model.description
    chat = openai.OpenAI(api_key=client.access_token_source.get_access_token(), base_url=model.openai_api_url)
    answer = chat.chat.completions.create(
        model=model.id,
        messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        max_tokens=20,
        temperature=0,
    )
    assert "Tokyo" in str(answer.choices[0].message.content)
    chat.close()
