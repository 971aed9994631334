"""/admin/keys and /admin/usage on the real server: valid and invalid requests, and changes that apply at once."""

from __future__ import annotations

import csv
import io
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.program import TOKKA, Program, eventually, running
from tokka.protocol.admin import IssuedKey, KeyList, KeyObject, UsageReport

ADMIN_KEY = "the-admin-key-of-the-test"
USER_KEY = "the-user-key-of-the-test"


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running("--engine", "fake", "--admin-key", ADMIN_KEY, "--api-key", USER_KEY) as program:
        yield program


@pytest.fixture
def admin(program: Program) -> Iterator[httpx.Client]:
    with program.client() as client:
        client.headers["authorization"] = f"Bearer {ADMIN_KEY}"
        yield client


def issue(admin: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = admin.post("/admin/keys", json={"name": "alice", **fields})
    assert answer.status_code == 201, answer.text
    IssuedKey.model_validate(answer.json(), strict=True)
    assert answer.headers["cache-control"] == "no-store"
    issued: dict[str, Any] = answer.json()
    return issued


def models(program: Program, secret: str) -> int:
    return httpx.get(f"{program.url}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code


def complete(program: Program, secret: str, tokens: int = 3) -> dict[str, Any]:
    body = {"model": "fake", "prompt": "hello", "max_tokens": tokens}
    headers = {"authorization": f"Bearer {secret}"}
    answer = httpx.post(f"{program.url}/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def test_a_key_is_good_at_once_and_its_secret_is_shown_once(program: Program, admin: httpx.Client) -> None:
    issued = issue(admin, tenant="lab", limits={"rpm": 100}, models=["fake"], expires_at=int(time.time()) + 60)
    assert models(program, issued["key"]) == 200
    assert issued["limits"]["rpm"] == 100
    listed = admin.get("/admin/keys?limit=1000")
    KeyList.model_validate(listed.json(), strict=True)
    secret = issued.pop("key")
    assert issued in listed.json()["data"]
    assert secret not in listed.text
    assert secret not in str(program.log)


def test_a_revoked_key_is_refused_at_once_and_stays_in_the_list(program: Program, admin: httpx.Client) -> None:
    issued = issue(admin)
    for _ in range(2):
        answer = admin.delete(f"/admin/keys/{issued['id']}")
        assert answer.status_code == 200
        assert KeyObject.model_validate(answer.json(), strict=True).status == "revoked"
    assert models(program, issued["key"]) == 401
    assert answer.json() in admin.get("/admin/keys?limit=1000").json()["data"]


def test_a_rotated_key_has_two_secrets_or_with_no_grace_one(program: Program, admin: httpx.Client) -> None:
    issued = issue(admin)
    second = admin.post(f"/admin/keys/{issued['id']}/rotate", json={}).json()
    assert [models(program, key["key"]) for key in (issued, second)] == [200, 200]
    third = admin.post(f"/admin/keys/{issued['id']}/rotate", json={"grace_s": 0}).json()
    assert [models(program, key["key"]) for key in (issued, second, third)] == [401, 401, 200]
    assert {key["id"] for key in (issued, second, third)} == {issued["id"]}


def test_the_list_comes_in_pages(admin: httpx.Client) -> None:
    made = [issue(admin)["id"] for _ in range(3)]
    seen: list[str] = []
    query = "limit=2"
    while True:
        page = admin.get(f"/admin/keys?{query}").json()
        assert len(page["data"]) <= 2
        seen += [key["id"] for key in page["data"]]
        if not page["has_more"]:
            break
        query = f"limit=2&after={seen[-1]}"
    assert set(made) <= set(seen)
    assert len(seen) == len(set(seen))
    assert admin.get("/admin/keys?after=key_unknown").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": " a"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "a", "tenant": "\0"}, "tenant"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "a", "models": []}, "models"),
        ({"name": "a", "models": [""]}, "models[0]"),
        ({"name": "a", "limits": {"rpm": 0}}, "limits.rpm"),
        ({"name": "a", "limits": {"rpm": True}}, "limits.rpm"),
        ({"name": "a", "limits": {"daily_tokens": 1.5}}, "limits.daily_tokens"),
        ({"name": "a", "limits": {"monthly_tokens": 2**53}}, "limits.monthly_tokens"),
        ({"name": "a", "limits": {"rps": 1}}, "limits.rps"),
        ({"name": "a", "expires_at": 1_700_000_000}, "expires_at"),
        ({"name": "a", "expires_at": "2099-01-01"}, "expires_at"),
        ({"name": "a", "digest": "00"}, "digest"),
    ],
)
def test_a_wrong_field_is_named(admin: httpx.Client, body: dict[str, Any], param: str) -> None:
    before = admin.get("/admin/keys?limit=1000").json()["data"]
    answer = admin.post("/admin/keys", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert admin.get("/admin/keys?limit=1000").json()["data"] == before


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *(("since=x", "since"), ("since=2026-02-30", "since"), ("until=2026-13-01", "until"), ("since=", "since")),
        *(("since=1h&until=2h", "since"), ("since=1h&since=2h", "since"), ("group_by=color", "group_by")),
        *(("group_by=", "group_by"), ("format=xml", "format"), ("key=k", "key")),
    ],
)
def test_a_wrong_query_is_named(admin: httpx.Client, query: str, param: str) -> None:
    answer = admin.get(f"/admin/usage?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "page=2"])
def test_a_wrong_page_is_refused(admin: httpx.Client, query: str) -> None:
    assert admin.get(f"/admin/keys?{query}").status_code == 400


@pytest.mark.parametrize("key_id", ["key_0123456789abcdef", "key-1", "x" * 500, "%00", "..%2f"])
def test_an_unknown_key_is_not_found(admin: httpx.Client, key_id: str) -> None:
    for answer in (admin.delete(f"/admin/keys/{key_id}"), admin.post(f"/admin/keys/{key_id}/rotate", json={})):
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("grace", [-1, 30 * 86400 + 1, "1h", None])
def test_a_grace_time_has_its_bounds(admin: httpx.Client, grace: object) -> None:
    answer = admin.post("/admin/keys/key_0123456789abcdef/rotate", json={"grace_s": grace})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "grace_s")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/usage")),
        *(("DELETE", "/admin/keys/key_0123456789abcdef"), ("POST", "/admin/keys/key_0123456789abcdef/rotate")),
    ],
)
def test_only_admins_may(program: Program, admin: httpx.Client, method: str, path: str) -> None:
    stored = issue(admin, scopes=["inference", "metrics"])["key"]
    for secret, expected in ((None, 401), ("unknown", 401), (USER_KEY, 403), (stored, 403)):
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        answer = httpx.request(method, f"{program.url}{path}", headers=headers)
        assert answer.status_code == expected


def test_a_stored_admin_may_and_may_do_nothing_else(program: Program, admin: httpx.Client) -> None:
    secret = issue(admin, scopes=["admin"])["key"]
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{program.url}/admin/keys", headers=headers).status_code == 200
    assert models(program, secret) == 403


def test_usage_is_exact_to_the_moment_in_both_formats(program: Program, admin: httpx.Client) -> None:
    issued = issue(admin, name="reader", tenant="lab-of-the-report")
    used = [complete(program, issued["key"], tokens) for tokens in (3, 5)]
    by = "group_by=tenant,key,model,day"
    report = admin.get(f"/admin/usage?{by}").json()
    UsageReport.model_validate(report, strict=True)
    (entry,) = [entry for entry in report["data"] if entry["tenant"] == "lab-of-the-report"]
    prompt, completion = (sum(usage[name] for usage in used) for name in ("prompt_tokens", "completion_tokens"))
    sums = {"requests": 2, "prompt_tokens": prompt, "cached_tokens": 0, "completion_tokens": completion}
    assert entry == {
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "tenant": "lab-of-the-report",
        "key_id": issued["id"],
        "model": "fake",
        **sums,
        "total_tokens": prompt + completion,
    }
    answer = admin.get(f"/admin/usage?{by}&format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {name: str(value) for name, value in entry.items()} in rows
    assert admin.get(f"/admin/usage?{by}&since=2020-01-01&until=2020-01-02").json()["data"] == []


def test_static_keys_are_counted_by_their_place(program: Program, admin: httpx.Client) -> None:
    complete(program, USER_KEY)
    report = admin.get("/admin/usage?group_by=key").json()["data"]
    assert [entry["requests"] for entry in report if entry["key_id"] == "key-1"] == [1]


def test_a_path_says_all_that_may_be_done_with_it(admin: httpx.Client) -> None:
    answer = admin.put("/admin/keys")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_a_server_without_keys_has_no_admin_over_http(tmp_path: Path) -> None:
    with running("--engine", "fake", "--state-dir", str(tmp_path)) as program, program.client() as client:
        for method, path in (("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/usage")):
            refused = client.request(method, path, json={"name": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
            assert "tokka keys create" in refused.json()["error"]["message"]
        assert client.get("/v1/models").status_code == 200


def test_the_first_key_is_made_on_the_command_line(tmp_path: Path) -> None:
    with running("--engine", "fake", "--state-dir", str(tmp_path)) as program, program.client() as client:
        command = [str(TOKKA), "keys", "create", "--name", "a", "--scope", "admin", "--state-dir", str(tmp_path), "-q"]
        secret = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        headers = {"authorization": f"Bearer {secret}"}
        eventually(lambda: client.get("/admin/keys", headers=headers).status_code == 200, within_s=10)
        assert client.get("/admin/keys").status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=headers).status_code == 200
