"""Fields of vLLM's request classes: each is known here, and an unset one changes nothing when it is sent."""

from __future__ import annotations

from tests.engine.vllm.apart import passed


def test_every_field_of_vllm_is_known_by_name() -> None:
    assert "16 passed" in passed("fields_checks.py")
