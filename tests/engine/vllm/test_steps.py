"""Runs steps_checks.py: the replacement of vLLM's output processing."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import passed


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_steps_reach_their_requests() -> None:
    assert "14 passed" in passed("steps_checks.py")
