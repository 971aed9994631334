"""Runs steps_checks.py: the replacement of vLLM's output processing."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_steps_reach_their_requests(subtests: pytest.Subtests) -> None:
    assert_each_passes("steps_checks.py", subtests)
