"""The cache of tokens: what it finds again, for whom, and how it stays within its memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from tokka.engine.vllm.token_cache import Segment, TokenCache

SIZE = 10_000


def segment(name: str, salt: str | None = None) -> Segment:
    return salt, f"{name:-<{SIZE}}", None


def filled(cache: TokenCache, owner: str, names: list[str]) -> None:
    for name in names:
        cache.put(owner, segment(name), range(10))


def held(cache: TokenCache, owner: str, names: list[str]) -> list[str]:
    return [name for name in names if cache.get(owner, segment(name)) is not None]


def test_cache_returns_the_tokens_of_a_segment() -> None:
    cache = TokenCache()
    cache.put("a", segment("x"), [1, 2, 4_000_000_000])
    tokens = cache.get("a", segment("x"))
    assert tokens is not None
    assert list(tokens) == [1, 2, 4_000_000_000]


def test_cache_keeps_owners_salts_and_places_apart() -> None:
    cache = TokenCache()
    cache.put("a", ("salt", "text", None), [1])
    others: list[tuple[str, Segment]] = [
        ("b", ("salt", "text", None)),
        ("a", ("other", "text", None)),
        ("a", (None, "text", None)),
        ("a", ("salt", "text", ())),
        ("a", ("salt", "text", ((0, 1),))),
    ]
    assert [cache.get(owner, each) for owner, each in others] == [None] * len(others)


def test_full_cache_drops_the_least_recently_used_segment() -> None:
    cache = TokenCache(most_bytes=5 * SIZE)
    filled(cache, "a", ["1", "2", "3", "4"])
    assert held(cache, "a", ["1"])
    filled(cache, "a", ["5"])
    assert held(cache, "a", ["1", "2", "3", "4", "5"]) == ["1", "3", "4", "5"]


def test_owner_with_the_most_bytes_makes_room() -> None:
    cache = TokenCache(most_bytes=10 * SIZE)
    filled(cache, "small", ["1", "2"])
    filled(cache, "large", [str(number) for number in range(100)])
    assert held(cache, "small", ["1", "2"]) == ["1", "2"]
    assert len(held(cache, "large", [str(number) for number in range(100)])) >= 6


def test_segment_larger_than_the_memory_is_not_kept() -> None:
    cache = TokenCache(most_bytes=SIZE // 2)
    cache.put("a", segment("x"), range(10))
    assert cache.get("a", segment("x")) is None
    assert cache.bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 3000)), max_size=60))
def test_cache_stays_within_its_memory(puts: list[tuple[str, int, int]]) -> None:
    cache = TokenCache(most_bytes=20_000)
    for owner, name, tokens in puts:
        cache.put(owner, (None, str(name), None), range(tokens))
        assert 0 <= cache.bytes <= 20_000


def test_cache_counts_right_when_threads_use_it_at_once() -> None:
    cache = TokenCache(most_bytes=50 * SIZE)

    def work(number: int) -> None:
        for step in range(300):
            name = str((number * 7 + step) % 90)
            cache.put(str(step % 3), segment(name), range(10))
            cache.get(str(step % 3), segment(name))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    names = [str(number) for number in range(90)]
    kept = sum(len(held(cache, owner, names)) for owner in "012")
    alone = TokenCache()
    filled(alone, "a", ["1"])
    assert cache.bytes == kept * alone.bytes <= 50 * SIZE
