"""Runs fields_checks.py: every field of vLLM's requests is known, and null or its default changes nothing."""

from __future__ import annotations

import pytest

from tests.engine.vllm.apart import assert_each_passes


def test_every_field_of_vllm_is_known_by_name(subtests: pytest.Subtests) -> None:
    assert_each_passes("fields_checks.py", subtests)
