"""Runs fields_checks.py: every field of vLLM's requests is known, and null or its default changes nothing."""

from __future__ import annotations

from tests.engine.vllm.apart import passed


def test_every_field_of_vllm_is_known_by_name() -> None:
    assert "16 passed" in passed("fields_checks.py")
