"""The contract of every engine. Subclass `EngineContract` and give it an `engine` fixture.

The engine must be started. It must end every answer by itself or at `max_tokens`, and give the same answer to the same
request at temperature 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.events import engine_events, one_by_one
from tokka.core import (
    Accepted,
    ChatPrompt,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Prompt,
    PromptEcho,
    PromptLogprobs,
    Sampling,
    TextDelta,
    TextPrompt,
    TokenLogprob,
    TokensPrompt,
    Usage,
)
from tokka.engine.base import Engine
from tokka.errors import ContextLengthExceeded, InvalidRequest

TENANT = "tenant"
PROMPT = TextPrompt("The capital of Finland is")
HUGE = 2**31 - 1
# A model repeats the last emoji, of three tokens. Each is far likelier than others, so that rounding does not matter.
# The scripted engine's own text begins with "Päivää".
EMOJI = TextPrompt("🦌 🐟 🐻 🦌 🐟 🐻 🦌 🐟 🐻 🦌")
LENGTH = 60
TO_LENGTH = Sampling(max_tokens=LENGTH, temperature=0.0, ignore_eos=True)


def ask(*prompts: Prompt, sampling: Sampling | None = None, **fields: Any) -> GenerateRequest:
    sampling = sampling or Sampling(max_tokens=12, temperature=0.0)
    return GenerateRequest("test", "model", prompts or (PROMPT,), sampling, **fields)


@dataclass(frozen=True)
class Result:
    """The events of one request, and their texts, tokens and usage."""

    events: list[Event]

    def deltas(self, index: int = 0) -> list[TextDelta]:
        return [event for event in self.events if isinstance(event, TextDelta) and event.index == index]

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas(index))

    def token_ids(self, index: int = 0) -> list[int]:
        return [token for delta in self.deltas(index) for token in delta.token_ids]

    def logprobs(self, index: int = 0) -> list[TokenLogprob]:
        return [token for delta in self.deltas(index) for token in delta.logprobs or ()]

    def done(self, index: int = 0) -> ChoiceDone:
        (done,) = [event for event in self.events if isinstance(event, ChoiceDone) and event.index == index]
        return done

    @property
    def indices(self) -> list[int]:
        return sorted(event.index for event in self.events if isinstance(event, ChoiceDone))

    @property
    def usage(self) -> Usage:
        finished = self.events[-1]
        assert isinstance(finished, Finished)
        return finished.usage

    @property
    def prompts(self) -> list[list[int]]:
        accepted = self.events[0]
        assert isinstance(accepted, Accepted)
        return [list(ids) for ids in accepted.prompt_token_ids]

    @property
    def echoes(self) -> list[PromptEcho]:
        return [event for event in self.events if isinstance(event, PromptEcho)]


async def resumed(engine: Engine, request: GenerateRequest, whole: Result, cut: int) -> Result:
    """Continue a request after the first `cut` tokens of its result; check that both parts make the result again."""
    first = whole.deltas()[:cut]
    tokens = tuple(token for delta in first for token in delta.token_ids)
    assert len(tokens) == cut, "the deltas came together"
    rest = await collect(engine, replace(request, resume=tokens))
    assert rest.prompts == whole.prompts
    assert (*tokens, *rest.token_ids()) == tuple(whole.token_ids())
    assert "".join(delta.text for delta in first) + rest.text() == whole.text()
    assert rest.done() == whole.done()
    return rest


async def collect(engine: Engine, request: GenerateRequest) -> Result:
    return Result(await engine_events(engine, request))


class EngineContract:
    """Tests that every engine must pass."""

    async def test_accepted_comes_first_and_finished_last(self, engine: Engine) -> None:
        events = (await collect(engine, ask())).events
        assert isinstance(events[0], Accepted)
        assert isinstance(events[-1], Finished)
        assert not any(isinstance(event, Accepted | Finished) for event in events[1:-1])

    async def test_nothing_of_a_choice_follows_its_end(self, engine: Engine) -> None:
        events = (await collect(engine, ask(sampling=Sampling(n=3, max_tokens=5)))).events
        ended: set[int] = set()
        for event in events:
            if isinstance(event, TextDelta | ChoiceDone):
                assert event.index not in ended
            if isinstance(event, ChoiceDone):
                ended.add(event.index)

    async def test_choices_are_numbered_prompt_by_prompt(self, engine: Engine) -> None:
        result = await collect(engine, ask(PROMPT, TextPrompt("One, two"), sampling=Sampling(n=2, max_tokens=3)))
        assert result.indices == [0, 1, 2, 3]

    async def test_accepted_holds_the_tokens_of_each_prompt(self, engine: Engine) -> None:
        other = TextPrompt("One, two")
        result = await collect(engine, ask(PROMPT, other, sampling=Sampling(max_tokens=1)))
        assert result.prompts == [list(await engine.tokenize(text, TENANT)) for text in (PROMPT, other)]

    async def test_a_chat_prompt_is_rendered_to_tokens(self, engine: Engine) -> None:
        chat = ChatPrompt(({"role": "user", "content": "Hei"},))
        result = await collect(engine, ask(chat, sampling=Sampling(max_tokens=1)))
        assert result.prompts == [list(await engine.tokenize(chat, TENANT))]

    async def test_token_ids_of_the_deltas_are_the_tokens_that_usage_counts(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(n=2, max_tokens=7)))
        assert len(result.token_ids(0)) + len(result.token_ids(1)) == result.usage.completion_tokens

    async def test_usage_counts_each_prompt_once(self, engine: Engine) -> None:
        result = await collect(engine, ask(PROMPT, PROMPT, sampling=Sampling(n=2, max_tokens=2)))
        assert result.usage.prompt_tokens == 2 * len(await engine.tokenize(PROMPT, TENANT))

    async def test_length_ends_a_choice_after_exactly_max_tokens(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=3, ignore_eos=True, temperature=0.0)))
        assert len(result.token_ids()) == 3
        assert (result.done().finish_reason, result.done().stop_reason) == ("length", None)

    async def test_max_tokens_zero_generates_nothing(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=0)))
        assert (result.text(), result.usage.completion_tokens) == ("", 0)
        assert result.done().finish_reason == "length"

    async def test_ignore_eos_goes_on_to_the_limit(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=200, ignore_eos=True, temperature=0.0)))
        assert result.usage.completion_tokens == 200

    async def test_a_stop_string_is_named_and_not_returned(self, engine: Engine) -> None:
        text = (await collect(engine, ask())).text()
        stop = text[3:6]
        result = await collect(engine, ask(sampling=Sampling(max_tokens=12, temperature=0.0, stop=(stop,))))
        assert result.text() == text.partition(stop)[0]
        assert (result.done().finish_reason, result.done().stop_reason) == ("stop", stop)

    async def test_an_included_stop_string_ends_the_text(self, engine: Engine) -> None:
        text = (await collect(engine, ask())).text()
        stop = text[3:6]
        sampling = Sampling(max_tokens=12, temperature=0.0, stop=(stop,), include_stop=True)
        result = await collect(engine, ask(sampling=sampling))
        assert result.text() == text.partition(stop)[0] + stop
        assert result.done().stop_reason == stop

    async def test_a_stop_token_is_named_counted_and_not_returned(self, engine: Engine) -> None:
        free = await collect(engine, ask())
        token = free.token_ids()[4]
        sampling = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(token,))
        result = await collect(engine, ask(sampling=sampling))
        assert result.token_ids() == free.token_ids()[: free.token_ids().index(token) + 1]
        assert result.text() == await engine.detokenize(result.token_ids()[:-1], TENANT)
        assert (result.done().finish_reason, result.done().stop_reason) == ("stop", token)

    async def test_min_tokens_delays_a_stop_token(self, engine: Engine) -> None:
        token = (await collect(engine, ask())).token_ids()[0]
        sampling = Sampling(max_tokens=12, min_tokens=6, temperature=0.0, stop_token_ids=(token,))
        result = await collect(engine, ask(sampling=sampling))
        assert result.usage.completion_tokens >= 6

    async def test_logprobs_spell_the_text(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=10, temperature=0.0, logprobs=0)))
        assert b"".join(token.bytes for token in result.logprobs()).decode(errors="replace") == result.text()

    async def test_alternatives_are_as_many_as_asked_for(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=4, temperature=0.0, logprobs=3)))
        assert [len(token.top) for token in result.logprobs()] == [3] * 4

    async def test_without_logprobs_there_are_none(self, engine: Engine) -> None:
        result = await collect(engine, ask())
        assert {delta.logprobs for delta in result.deltas()} == {None}
        assert result.done().cumulative_logprob is None

    async def test_cumulative_logprob_is_the_sum_over_the_tokens(self, engine: Engine) -> None:
        sampling = Sampling(max_tokens=5, temperature=0.0, logprobs=0, ignore_eos=True)
        result = await collect(engine, ask(sampling=sampling))
        total = sum(token.logprob or 0.0 for token in result.logprobs())
        assert result.done().cumulative_logprob == pytest.approx(total, abs=1e-4)

    async def test_echo_gives_each_prompt_before_its_choices(self, engine: Engine) -> None:
        prompts = (PROMPT, TextPrompt("One, two"))
        result = await collect(engine, ask(*prompts, sampling=Sampling(n=2, max_tokens=2), echo=True))
        assert [(echo.prompt_index, echo.text) for echo in result.echoes] == [
            (number, prompt.text) for number, prompt in enumerate(prompts)
        ]
        for echo in result.echoes:
            own = [
                place
                for place, event in enumerate(result.events)
                if isinstance(event, TextDelta) and event.index // 2 == echo.prompt_index
            ]
            assert result.events.index(echo) < min(own)

    async def test_echoed_logprobs_spell_the_prompt_and_begin_with_none(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=0, logprobs=1), echo=True))
        # A long prompt comes in parts.
        scores = [token for echo in result.echoes for token in echo.logprobs or ()]
        assert b"".join(token.bytes for token in scores).decode() == PROMPT.text
        assert [token.logprob is None for token in scores] == [True] + [False] * (len(result.prompts[0]) - 1)

    async def test_prompt_logprobs_score_each_prompt_but_its_first_token(self, engine: Engine) -> None:
        prompts = (PROMPT, TextPrompt("One, two"))
        result = await collect(engine, ask(*prompts, sampling=Sampling(n=2, max_tokens=1, prompt_logprobs=2)))
        for number, ids in enumerate(result.prompts):
            parts = [event for event in result.events if isinstance(event, PromptLogprobs)]
            tokens = [token for part in parts if part.prompt_index == number for token in part.tokens]
            assert [token.id for token in tokens] == ids
            assert [token.logprob is None for token in tokens] == [True] + [False] * (len(ids) - 1)
            assert {len(token.top) for token in tokens[1:]} == {2}

    async def test_truncation_keeps_the_end_of_the_prompt(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=1), truncate_prompt_tokens=2))
        assert result.prompts == [list(await engine.tokenize(PROMPT, TENANT))[-2:]]

    async def test_truncation_of_the_right_keeps_the_start(self, engine: Engine) -> None:
        asked = ask(sampling=Sampling(max_tokens=1), truncate_prompt_tokens=2, truncation_side="right")
        assert (await collect(engine, asked)).prompts == [list(await engine.tokenize(PROMPT, TENANT))[:2]]

    async def test_truncation_fits_a_prompt_of_any_length_to_the_context(self, engine: Engine) -> None:
        asked = ask(TextPrompt("one two " * 20_000), sampling=Sampling(max_tokens=3), truncate_prompt_tokens=-1)
        assert (await collect(engine, asked)).usage.completion_tokens == 3

    async def test_detokenize_undoes_tokenize(self, engine: Engine) -> None:
        text = TextPrompt("Hyvää päivää 🦌!")
        assert await engine.detokenize(await engine.tokenize(text, TENANT), TENANT) == text.text

    async def test_token_texts_are_one_for_each_token(self, engine: Engine) -> None:
        ids = await engine.tokenize(PROMPT, TENANT)
        texts = await engine.token_texts(ids, TENANT)
        assert len(texts) == len(ids)
        assert "capital" in "".join(texts)

    async def test_more_than_the_context_is_refused_before_accepted(self, engine: Engine) -> None:
        with pytest.raises(ContextLengthExceeded):
            await engine.prepare(ask(sampling=Sampling(max_tokens=10**9)))

    @pytest.mark.parametrize(
        ("param", "sampling"),
        [
            ("logit_bias", Sampling(logit_bias={HUGE: 1.0})),
            ("stop_token_ids", Sampling(stop_token_ids=(HUGE,))),
            ("allowed_token_ids", Sampling(allowed_token_ids=(HUGE,))),
        ],
    )
    async def test_a_token_id_outside_the_vocabulary_is_refused(
        self, engine: Engine, param: str, sampling: Sampling
    ) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await engine.prepare(ask(sampling=replace(sampling, max_tokens=1)))
        assert refusal.value.param == param

    async def test_a_prompt_token_outside_the_vocabulary_is_refused(self, engine: Engine) -> None:
        with pytest.raises(InvalidRequest):
            await engine.prepare(ask(TokensPrompt((HUGE,))))

    @pytest.mark.parametrize("tokens", [[-1], [HUGE]])
    async def test_detokenizing_an_unknown_id_is_refused(self, engine: Engine, tokens: Sequence[int]) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await engine.detokenize(tokens, TENANT)
        assert refusal.value.param == "tokens"

    async def test_the_engine_serves_on_after_a_generation_was_given_up(self, engine: Engine) -> None:
        prepared = await engine.prepare(ask(sampling=Sampling(max_tokens=500, ignore_eos=True)))
        events = one_by_one(prepared.run)
        await anext(events)
        await anext(events)
        await events.aclose()
        assert (await collect(engine, ask())).usage.completion_tokens > 0

    async def test_a_resumed_choice_goes_on_exactly(self, engine: Engine) -> None:
        request = ask(EMOJI, sampling=TO_LENGTH)
        whole = await collect(engine, request)
        for cut in (1, 20, 40, LENGTH - 1):
            rest = await resumed(engine, request, whole, cut)
            assert rest.done().finish_reason == "length"
            assert len(rest.token_ids()) == LENGTH - cut
            assert (rest.usage.prompt_tokens, rest.usage.completion_tokens) == (len(whole.prompts[0]), LENGTH)
            assert rest.usage.cached_tokens <= rest.usage.prompt_tokens

    async def test_a_choice_is_resumed_inside_a_character(self, engine: Engine) -> None:
        request = ask(EMOJI, sampling=TO_LENGTH)
        whole = await collect(engine, request)
        inside = [cut for cut, delta in enumerate(whole.deltas(), 1) if not delta.text]
        assert inside
        for cut in inside[:3]:
            await resumed(engine, request, whole, cut)

    async def test_a_resumed_choice_ends_at_its_stop_token(self, engine: Engine) -> None:
        token = (await collect(engine, ask(EMOJI, sampling=TO_LENGTH))).token_ids()[2]
        request = ask(EMOJI, sampling=replace(TO_LENGTH, stop_token_ids=(token,)))
        whole = await collect(engine, request)
        rest = await resumed(engine, request, whole, 2)
        assert (rest.done().finish_reason, rest.done().stop_reason) == ("stop", token)
        assert rest.usage.completion_tokens == whole.usage.completion_tokens == 3

    @pytest.mark.parametrize(
        "changes",
        [
            {"resume": (HUGE,)},
            {"resume": (1,) * LENGTH},
            {"sampling": replace(TO_LENGTH, temperature=0.7)},
            {"sampling": replace(TO_LENGTH, n=2)},
        ],
        ids=["unknown token", "ended", "sampled", "choices"],
    )
    async def test_a_request_that_cannot_be_resumed_is_refused(self, engine: Engine, changes: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await engine.prepare(replace(ask(sampling=TO_LENGTH, resume=(1, 2)), **changes))
        assert refusal.value.param == "resume"

    async def test_a_choice_that_has_ended_is_not_resumed(self, engine: Engine) -> None:
        request = ask(sampling=replace(TO_LENGTH, stop_token_ids=(7,)), resume=(1, 7))
        with pytest.raises(InvalidRequest) as refusal:
            await collect(engine, request)
        assert refusal.value.param == "resume"

    async def test_a_living_engine_names_no_cause_of_death_and_answers_a_call(self, engine: Engine) -> None:
        await asyncio.wait_for(engine.ping(), 30)
        assert engine.stats().death is None

    async def test_work_shows_as_steps_and_as_unfinished_until_it_is_done(self, engine: Engine) -> None:
        before = engine.stats()
        prepared = await engine.prepare(ask(sampling=Sampling(max_tokens=20, ignore_eos=True)))
        async with aclosing(one_by_one(prepared.run)) as events:
            await anext(events)
            assert engine.stats().unfinished == before.unfinished + 1
            async for _ in events:
                pass
        assert engine.stats().unfinished == before.unfinished
        assert engine.stats().steps > before.steps
