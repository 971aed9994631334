"""Runs parsers_checks.py: Tokka's reading of texts against vLLM's parsers."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_incremental_reading_matches_the_library(subtests: pytest.Subtests) -> None:
    assert_each_passes("parsers_checks.py", subtests)
