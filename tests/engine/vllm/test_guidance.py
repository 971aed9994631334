"""Runs guidance_checks.py: Tokka's part of vLLM's backend for constraints."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_the_engine_follows_ready_grammars_only(subtests: pytest.Subtests) -> None:
    assert_each_passes("guidance_checks.py", subtests)
