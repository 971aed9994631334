"""Runs guidance_checks.py: Tokka's part of vLLM's backend for constraints."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import passed


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_the_engine_follows_ready_grammars_only() -> None:
    assert "36 passed" in passed("guidance_checks.py")
