"""The OpenAPI document: the responses and aliases of every endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.program import Program
from tokka.api.path_facts import facts_of


@pytest.fixture(scope="module")
def document(fake: Program) -> dict[str, Any]:
    with fake.client() as client:
        answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def test_every_endpoint_documents_the_common_errors(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        assert "431" in operation["responses"], path
        # Causes: an issuer that is down, an engine that starts, a downtime.
        assert "503" in operation["responses"] or facts_of(path).is_probe, path
        assert ("408" in operation["responses"]) == ("requestBody" in operation), path


def test_v1_paths_document_their_alias_and_serve_it(fake: Program, document: dict[str, Any]) -> None:
    with_alias = {path for path, operation in operations(document) if operation.get("servers", [])[1:]}
    assert with_alias == {path for path in document["paths"] if path.startswith("/v1/")}
    with fake.client() as client:
        for path in with_alias:
            asked = path.replace("{model}", fake.model)
            answers = [client.request("OPTIONS", f"{root}{asked}") for root in ("", "/openai")]
            assert answers[0].headers["allow"] == answers[1].headers["allow"], path
