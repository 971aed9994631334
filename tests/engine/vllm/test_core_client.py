"""Runs the checks of the engine's clients: core_client, core_metrics, pooling and public_client_checks.py."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def test_client_speaks_like_vllms_own(subtests: pytest.Subtests) -> None:
    assert_each_passes("core_client_checks.py", subtests)


def test_client_records_the_metrics_of_vllm(subtests: pytest.Subtests) -> None:
    assert_each_passes("core_metrics_checks.py", subtests)


def test_clients_run_pooling_models(subtests: pytest.Subtests) -> None:
    assert_each_passes("pooling_checks.py", subtests)


def test_client_for_unknown_versions_works(subtests: pytest.Subtests) -> None:
    assert_each_passes("public_client_checks.py", subtests)
