"""Verdicts are kept per tenant, within a limit that one tenant cannot use up."""

from __future__ import annotations

from tokka.engine.grammars.verdicts import MAX_BYTES, Verdict, Verdicts

MIB = 1 << 20


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_verdict_is_found_by_its_tenant_only() -> None:
    verdicts = Verdicts()
    verdicts.keep("a", key(1), Verdict("g"))
    assert verdicts.find("a", key(1), 0) == Verdict("g")
    assert verdicts.find("b", key(1), 0) is None


def test_doubtful_refusal_ends() -> None:
    verdicts = Verdicts()
    verdicts.keep("a", key(1), Verdict(reason="slow", until_s=60))
    assert verdicts.find("a", key(1), 59.9)
    assert verdicts.find("a", key(1), 60) is None


def test_full_cache_drops_the_largest_tenants_verdicts() -> None:
    verdicts = Verdicts()
    verdicts.keep("small", key(1), Verdict("g"))
    for number in range(100):
        verdicts.keep("flood", key(number), Verdict("g" * MIB))
        assert verdicts.bytes <= MAX_BYTES
    assert verdicts.find("small", key(1), 0)
    assert verdicts.find("flood", key(99), 0)
    assert verdicts.find("flood", key(0), 0) is None


def test_full_cache_keeps_the_recently_used_verdicts() -> None:
    verdicts = Verdicts()
    for number in range(100):
        verdicts.keep("a", key(number), Verdict("g" * MIB))
        verdicts.find("a", key(0), 0)
    assert verdicts.find("a", key(0), 0)
    assert verdicts.find("a", key(50), 0) is None


def test_replaced_verdict_is_counted_once() -> None:
    verdicts = Verdicts()
    for _ in range(5):
        verdicts.keep("a", key(1), Verdict("g" * MIB))
    assert verdicts.bytes == Verdict("g" * MIB).bytes


def test_emptied_tenant_is_forgotten() -> None:
    verdicts = Verdicts()
    verdicts.keep("a", key(1), Verdict("g" * (MAX_BYTES + 1)))
    assert (verdicts.bytes, verdicts._shares) == (0, {})
