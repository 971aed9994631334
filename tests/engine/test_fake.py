"""The scripted engine: the contract of every engine, and its own options and texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.contract import EngineContract, ask, collect
from tests.events import one_by_one
from tokka.core import ChatPrompt, Constraint, ConstraintKind, GenerateRequest, Sampling, TextPrompt, TokensPrompt
from tokka.engine.fake import ANSWER, FakeEngine, FakeOptions
from tokka.engine.script import EOS, VOCAB_SIZE
from tokka.errors import InvalidRequest, UnsupportedParameter

ANSWER_BYTES = ANSWER.encode()


async def started(options: FakeOptions | None = None, cap: int | None = None) -> FakeEngine:
    engine = FakeEngine(options or FakeOptions(), cap)
    await engine.start(lambda _phase, _detail: None)
    return engine


class TestContract(EngineContract):
    """Runs the contract of every engine on the scripted engine."""

    @pytest.fixture
    async def engine(self) -> FakeEngine:
        return await started()


@pytest.fixture
async def engine() -> FakeEngine:
    return await started()


async def test_answer_ends_by_itself_with_one_token_for_its_end(engine: FakeEngine) -> None:
    result = await collect(engine, ask(sampling=Sampling()))
    assert result.text() == ANSWER
    assert result.usage.completion_tokens == len(ANSWER_BYTES) + 1
    assert (result.done().finish_reason, result.done().stop_reason) == ("stop", None)


async def test_answer_is_an_option() -> None:
    engine = await started(FakeOptions(answer="Moi"))
    assert (await collect(engine, ask(sampling=Sampling()))).text() == "Moi"


async def test_start_reports_a_phase_and_returns_engine_info() -> None:
    phases: list[str] = []
    info = await FakeEngine(FakeOptions(max_model_len=99)).start(lambda phase, _detail: phases.append(phase))
    assert phases == ["loading weights"]
    assert (info.max_model_len, info.vocab_size, info.engine) == (99, VOCAB_SIZE, "fake")


async def test_a_character_split_over_tokens_arrives_whole(engine: FakeEngine) -> None:
    result = await collect(engine, ask(sampling=Sampling()))
    assert not any("\ufffd" in delta.text for delta in result.deltas())


async def test_every_choice_says_the_same(engine: FakeEngine) -> None:
    result = await collect(engine, ask(sampling=Sampling(n=3)))
    assert {result.text(index) for index in range(3)} == {ANSWER}


async def test_ignore_eos_says_the_answer_again(engine: FakeEngine) -> None:
    result = await collect(engine, ask(sampling=Sampling(ignore_eos=True, max_tokens=2 * len(ANSWER_BYTES) + 1)))
    assert result.text() == f"{ANSWER} {ANSWER}"


async def test_min_tokens_is_reached_before_the_answer_may_end(engine: FakeEngine) -> None:
    enough = len(ANSWER_BYTES) + 20
    result = await collect(engine, ask(sampling=Sampling(min_tokens=enough)))
    assert result.usage.completion_tokens >= enough
    assert result.done().finish_reason == "stop"


async def test_min_tokens_ignores_a_stop_string_that_comes_sooner(engine: FakeEngine) -> None:
    result = await collect(engine, ask(sampling=Sampling(min_tokens=20, stop=("i",))))
    assert result.text() == ANSWER[: ANSWER.index("i", len(ANSWER_BYTES[:20].decode()))]


async def test_server_cap_bounds_a_request_without_a_limit() -> None:
    engine = await started(cap=5)
    result = await collect(engine, ask(sampling=Sampling()))
    assert (result.usage.completion_tokens, result.done().finish_reason) == (5, "length")


async def test_an_unfinished_character_at_the_limit_is_left_out(engine: FakeEngine) -> None:
    # The first two tokens are P and the first byte of ä.
    result = await collect(engine, ask(sampling=Sampling(max_tokens=2)))
    assert result.text() == "P"


async def test_the_end_token_has_no_text(engine: FakeEngine) -> None:
    assert await engine.detokenize([ord("a"), EOS, ord("b")], "tenant") == "ab"


async def test_empty_text_is_counted_as_no_token(engine: FakeEngine) -> None:
    assert list(await engine.tokenize(TextPrompt(""), "tenant")) == []


async def test_empty_text_is_run_as_the_beginning_of_a_document(engine: FakeEngine) -> None:
    result = await collect(engine, GenerateRequest("r", "m", (TextPrompt(""),), Sampling(max_tokens=1)))
    assert result.prompts == [[256]]


async def test_a_token_prompt_is_taken_as_it_is(engine: FakeEngine) -> None:
    assert await engine.tokenize(TokensPrompt((1, 2, 256)), "tenant") == (1, 2, 256)


async def test_running_counts_open_generations(engine: FakeEngine) -> None:
    first, second = [one_by_one((await engine.prepare(ask())).run) for _ in range(2)]
    # Both are rendered and counted, but not begun.
    assert engine.stats().running == 0
    await anext(first)
    await anext(second)
    assert engine.stats().running == 2
    await first.aclose()
    assert engine.stats().running == 1
    await second.aclose()
    assert engine.stats().running == 0


pieces_of_the_answer = st.tuples(st.integers(0, len(ANSWER) - 1), st.integers(1, 5)).map(
    lambda place: ANSWER[place[0] : place[0] + place[1]]
)
stop_sets = st.lists(pieces_of_the_answer | st.text("aäi 🦌", min_size=1, max_size=3), max_size=4)
limits = st.integers(0, len(ANSWER_BYTES) + 3)


def expected(limit: int, stops: list[str], include_stop: bool) -> tuple[str, str | None]:
    """Cut the answer by hand at the stop string that is complete first within the limit."""
    text = ANSWER_BYTES[:limit].decode(errors="ignore")
    found = [(at + len(stop), at, order) for order, stop in enumerate(stops) if (at := text.find(stop)) >= 0]
    if not found:
        return text, None
    _, at, order = min(found)
    return text[:at] + (stops[order] if include_stop else ""), stops[order]


@given(stop_sets, limits, st.booleans())
async def test_stops_and_limit_cut_the_answer_where_they_should(
    stops: list[str], limit: int, include_stop: bool
) -> None:
    sampling = Sampling(max_tokens=limit, stop=tuple(stops), include_stop=include_stop)
    result = await collect(await started(), ask(sampling=sampling))
    assert (result.text(), result.done().stop_reason) == expected(limit, stops, include_stop)


@given(stop_sets, limits)
async def test_logprobs_spell_the_text_up_to_the_token_that_was_cut(stops: list[str], limit: int) -> None:
    sampling = Sampling(max_tokens=limit, stop=tuple(stops), logprobs=0)
    result = await collect(await started(), ask(sampling=sampling))
    spelled = b"".join(token.bytes for token in result.logprobs())
    if result.done().finish_reason == "stop":
        assert spelled == result.text().encode()
    else:
        assert spelled == ANSWER_BYTES[:limit]


@given(stop_sets, limits)
async def test_usage_counts_every_token_of_the_deltas(stops: list[str], limit: int) -> None:
    result = await collect(await started(), ask(sampling=Sampling(max_tokens=limit, stop=tuple(stops))))
    assert result.usage.completion_tokens == len(result.token_ids()) <= limit


async def test_of_several_choices_it_says_the_first(engine: FakeEngine) -> None:
    constraint = Constraint("choice", '["ei", "kyllä"]', "structured_outputs.choice")
    result = await collect(engine, ask(sampling=Sampling(n=2, constraint=constraint)))
    assert [result.text(index) for index in range(2)] == ["ei", "ei"]
    assert result.done().finish_reason == "stop"


@pytest.mark.parametrize("kind", ["json", "regex", "grammar"])
async def test_a_form_it_cannot_follow_is_refused_by_name(engine: FakeEngine, kind: ConstraintKind) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        await collect(engine, ask(sampling=Sampling(constraint=Constraint(kind, "{}", "field"))))
    assert caught.value.param == "field"


async def test_fake_engine_leaves_out_an_optional_constraint(engine: FakeEngine) -> None:
    held = Constraint("calls", "{}", "tools", is_optional=True)
    result = await collect(engine, ask(sampling=Sampling(constraint=held)))
    assert result.text() == ANSWER
    with pytest.raises(UnsupportedParameter, match="'tools' needs a real engine"):
        await collect(engine, ask(sampling=Sampling(constraint=replace(held, is_optional=False))))


async def test_a_resumed_choice_ends_with_the_text(engine: FakeEngine) -> None:
    cut = len("Päivä".encode()) - 1
    request = ask(sampling=Sampling(temperature=0.0), resume=tuple(ANSWER_BYTES[:cut]))
    result = await collect(engine, request)
    assert result.text() == ANSWER.removeprefix("Päiv")
    assert result.usage.completion_tokens == len(ANSWER_BYTES) + 1
    assert (result.done().finish_reason, result.done().stop_reason) == ("stop", None)


@pytest.mark.parametrize("resumed", [10, len(ANSWER_BYTES) + 5])
async def test_resumed_tokens_take_no_steps_of_their_own(resumed: int) -> None:
    # Another worker may have another text, which is longer.
    engine = await started(FakeOptions(step_s=0.0005))
    request = ask(sampling=Sampling(temperature=0.0), resume=(ord("x"),) * resumed)
    result = await collect(engine, request)
    assert engine.stats().steps == len(result.token_ids()) == result.usage.completion_tokens - resumed
    assert result.usage.completion_tokens % (len(ANSWER_BYTES) + 1) == 0


async def test_reasoning_is_not_resumed() -> None:
    engine = await started(FakeOptions(thoughts=True))
    chat = ChatPrompt(({"role": "user", "content": "Hei"},))
    with pytest.raises(InvalidRequest, match="cannot be resumed"):
        await engine.prepare(ask(chat, resume=(1,)))
