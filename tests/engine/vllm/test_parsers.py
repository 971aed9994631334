"""Runs parsers_checks.py: Tokka's reading of texts against vLLM's parsers."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import passed


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_what_is_read_as_it_comes_is_what_the_library_reads_in_whole() -> None:
    assert " passed" in passed("parsers_checks.py")
