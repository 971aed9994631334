"""Runs the checks of resumed choices with vLLM's decoder: resume_checks.py."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def test_resumed_text_continues_with_vllms_decoder(subtests: pytest.Subtests) -> None:
    assert_each_passes("resume_checks.py", subtests)
