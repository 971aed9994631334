"""Runs parsers_checks.py: Tokka's reading of texts against vLLM's parsers."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_what_is_read_as_it_comes_is_what_the_library_reads_in_whole(subtests: pytest.Subtests) -> None:
    assert_each_passes("parsers_checks.py", subtests)
