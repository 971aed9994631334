"""Conversations: send, stop, continue, regenerate, remove, and the requests that the page sends for them."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Route, expect

from tests.program import Program
from tests.web.conftest import KEY, SLOW_ANSWER
from tests.web.visitor import Visitor
from tokka.engine.fake import ANSWER

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.engine
async def test_the_real_model_answers_and_goes_on_where_it_was_cut(visitor: Visitor, smollm2: Program) -> None:
    await visitor.open(smollm2.url)
    await visitor.set("Temperature", "0")
    await visitor.set("Longest answer, in tokens", "4")
    cut = await visitor.ask("What is the capital of Japan?")
    await expect(visitor.last.locator(".ending")).to_contain_text("Reached the length limit")
    await expect(visitor.last.locator(".figures")).to_contain_text("4 tokens")
    await visitor.set("Longest answer, in tokens", "")
    await visitor.button("Continue").click()
    await expect(visitor.last.locator(".ending")).to_contain_text("Finished", timeout=60_000)
    whole = await visitor.last.locator(".prose").inner_text()
    assert whole.startswith(cut)
    assert "Tokyo" in whole
    assert "<|" not in whole
    await expect(visitor.last.locator(".figures")).to_contain_text("tokens/s")
    first, second = visitor.bodies("/v1/chat/completions")
    assert first["max_completion_tokens"] == 4
    assert second["continue_final_message"] is True
    assert second["add_generation_prompt"] is False
    assert second["messages"][-1] == {"role": "assistant", "content": cut}


async def test_an_answer_is_shown_with_its_ending_and_its_tokens(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    assert await visitor.ask("Hei") == ANSWER
    await expect(visitor.last.locator(".ending")).to_contain_text("Finished")
    await expect(visitor.last.locator(".figures")).to_contain_text(f"{len(ANSWER.encode()) + 1} tokens")
    # The page announces the answer once, when it is complete.
    await expect(visitor.at("#announcer")).to_have_text(f"{ANSWER} Finished")


async def test_settings_are_sent_as_they_are_set(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.set("System prompt", "Be brief.")
    await visitor.set("Stop strings", "scripted\nnever\\n")
    await visitor.set("Temperature", "0.5")
    await visitor.set("Top p", "0.9")
    await visitor.set("Seed", "7")
    await visitor.ask("Hei")
    await expect(visitor.last.locator(".ending")).to_contain_text('Stopped at "scripted"')
    (body,) = visitor.bodies("/v1/chat/completions")
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hei"}]
    sent = {name: body[name] for name in ("stop", "temperature", "top_p", "seed")}
    assert sent == {"stop": ["scripted", "never\n"], "temperature": 0.5, "top_p": 0.9, "seed": 7}
    assert "max_completion_tokens" not in body
    assert "ignore_eos" not in body


async def test_length_and_stop_are_controlled_to_the_token(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.set("Longest answer, in tokens", "300")
    await visitor.set("Stop strings", "never\\n\na \\\\n")
    await visitor.page.get_by_text("Advanced").click()
    await visitor.set("Shortest answer, in tokens", "200")
    await visitor.set("Stop token ids", "256, 255")
    await visitor.page.get_by_label("Keep the stop string").check()
    await visitor.page.get_by_label("Ignore the end token").check()
    await visitor.page.reload()
    await expect(visitor.at("#count")).to_contain_text("tokens")
    await visitor.ask("Hei")
    await expect(visitor.last.locator(".ending")).to_contain_text("Reached the length limit")
    await expect(visitor.last.locator(".figures")).to_contain_text("300 tokens")
    (body,) = visitor.bodies("/v1/chat/completions")
    wanted = {
        "max_completion_tokens": 300,
        "min_tokens": 200,
        "stop": ["never\n", "a \\n"],
        "stop_token_ids": [256, 255],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
    }
    assert {name: body[name] for name in wanted} == wanted
    # Advanced settings that are in force are visible.
    await expect(visitor.page.get_by_label("Stop token ids")).to_be_visible()
    await visitor.button("Reset").click()
    await visitor.set("Stop strings", "scripted")
    await visitor.page.get_by_label("Keep the stop string").check()
    assert await visitor.ask("Hei") == ANSWER[: ANSWER.index(" engine")]


@pytest.mark.parametrize(("label", "value"), [("Stop token ids", "7, seven"), ("Shortest answer, in tokens", "11")])
async def test_a_wrong_advanced_setting_is_brought_to_sight(
    visitor: Visitor, fake: Program, label: str, value: str
) -> None:
    await visitor.open(fake.url)
    await visitor.set("Longest answer, in tokens", "10")
    heading = visitor.page.get_by_text("Advanced")
    await heading.click()
    await visitor.set(label, value)
    await heading.click()
    await visitor.say("Hei")
    await expect(visitor.page.get_by_label(label)).to_be_focused()
    assert visitor.bodies("/v1/chat/completions") == []


async def test_a_wrong_setting_is_named_and_nothing_is_sent(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.set("Temperature", "3")
    await visitor.say("Hei")
    await expect(visitor.page.get_by_label("Temperature")).to_be_focused()
    await expect(visitor.at("#option-temperature-wrong")).not_to_be_empty()
    assert visitor.bodies("/v1/chat/completions") == []


async def test_stop_keeps_the_text_and_its_token_count(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon")
    await guest.button("Stop").click()
    await expect(guest.last.locator(".ending")).to_contain_text("Stopped by you")
    text = await guest.last.locator(".prose").inner_text()
    assert SLOW_ANSWER.startswith(text)
    assert len(text) < len(SLOW_ANSWER) / 2
    tokens = int((await guest.last.locator(".figures").inner_text()).split()[0])
    assert tokens == pytest.approx(len(text), abs=2)
    await expect(guest.button("Continue")).to_be_visible()


async def test_answer_does_not_show_in_another_conversation(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon")
    await guest.button("New conversation").click()
    await expect(guest.answers).to_have_count(0)
    await guest.page.reload()
    await expect(guest.answers).to_have_count(0)
    await guest.button("Tell me a story").click()
    await expect(guest.last.locator(".ending")).to_contain_text("Stopped by you")


async def test_opening_the_current_conversation_changes_nothing(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon")
    await guest.button("Tell me a story").click()
    await expect(guest.at("#draft")).to_be_focused()
    await expect(guest.button("Stop")).to_be_visible()
    await expect(guest.last).to_contain_text("wrote slowly. Once upon")
    await guest.button("Stop").click()
    await expect(guest.last.locator(".ending")).to_contain_text("Stopped by you")


async def test_conversation_shows_the_ending_when_reopened_at_once(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon")
    # Both clicks come before the abort of the request takes effect.
    await guest.page.evaluate(
        """() => {
          document.getElementById("new").click();
          document.querySelector("#conversations .title").click();
        }"""
    )
    await expect(guest.last.locator(".ending")).to_contain_text("Stopped by you")


async def test_regenerate_asks_the_same_anew(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    await visitor.button("Regenerate").click()
    await visitor.ended()
    await expect(visitor.answers).to_have_count(1)
    first, second = visitor.bodies("/v1/chat/completions")
    assert first == second


async def test_remove_takes_back_the_last_turn_and_returns_its_question(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("One")
    await visitor.ask("Two")
    await visitor.button("Remove").click()
    await expect(visitor.answers).to_have_count(1)
    await expect(visitor.at("#draft")).to_have_value("Two")
    await visitor.ask("Three")
    sent = [message["content"] for message in visitor.bodies("/v1/chat/completions")[-1]["messages"]]
    assert sent == ["One", ANSWER, "Three"]


async def test_copy_gives_the_text_as_the_model_wrote_it(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    await visitor.last.get_by_role("button", name="Copy").click()
    await expect(visitor.at("#announcer")).to_have_text("Copied")
    assert await visitor.page.evaluate("navigator.clipboard.readText()") == ANSWER


async def test_tokens_of_draft_and_conversation_are_counted(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    # The scripted engine's tokens are bytes. Each message has `user: ` before it and a line end after it.
    await expect(visitor.at("#count")).to_have_text("7 of 4,096 tokens · 4,089 left")
    await visitor.at("#draft").fill("Hei")
    await expect(visitor.at("#count")).to_have_text("Draft 3 · 10 of 4,096 tokens · 4,086 left")
    await visitor.at("#draft").fill("x" * 5000)
    await expect(visitor.at("#count")).to_have_text("Draft 5,000 · 5,007 of 4,096 tokens · 0 left")


async def test_page_counts_the_context_left_during_an_answer(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.at("#count")).to_have_text(re.compile(r"^1\d\d of 4,096 tokens · 3,9\d\d left$"))
    await expect(guest.button("Stop")).to_be_visible()
    await guest.button("Stop").click()
    await expect(guest.last.locator(".ending")).to_contain_text("Stopped by you")


async def test_page_shows_the_servers_refusal(visitor: Visitor, fake: Program) -> None:
    visitor.provoked.add(400)
    await visitor.open(fake.url)
    await visitor.say("x" * 5000)
    await expect(visitor.last).to_contain_text("maximum context length is 4096 tokens")
    await expect(visitor.button("Retry")).to_be_visible()
    await visitor.button("Remove").click()
    await visitor.ask("Hei")
    assert [message["content"] for message in visitor.bodies("/v1/chat/completions")[-1]["messages"]] == ["Hei"]


async def test_a_busy_server_is_asked_again_when_it_said_so(visitor: Visitor, fake: Program) -> None:
    visitor.provoked.add(503)
    await visitor.open(fake.url)
    error = {"error": {"message": "128 requests are waiting already.", "code": "server_overloaded"}}

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, json=error, headers={"retry-after": "30"})

    await visitor.page.route("**/v1/chat/completions", refuse, times=1)
    await visitor.say("Hei")
    await expect(visitor.last).to_contain_text("128 requests are waiting already. Trying again in 30 s.")
    await expect(visitor.last).to_contain_text("Trying again in 29 s.")
    await visitor.button("Try now").click()
    await visitor.ended()
    await expect(visitor.last).to_contain_text(ANSWER)


async def test_thoughts_are_folded_above_the_answer(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    deltas = [{"reasoning_content": "Let me think."}, {"content": "Four."}]
    chunks = [f'data: {{"choices": [{{"delta": {delta}}}]}}\n\n'.replace("'", '"') for delta in deltas]
    ending = 'data: {"choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": null}]}\n\ndata: [DONE]\n\n'
    body = "".join([*chunks, ending])
    await visitor.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    assert await visitor.ask("2 + 2?") == "Four."
    await expect(visitor.last.get_by_text("Let me think.")).to_be_hidden()
    await visitor.last.get_by_text("Reasoning").click()
    await expect(visitor.last.get_by_text("Let me think.")).to_be_visible()


async def test_the_key_is_asked_for_and_stays_in_the_tab(visitor: Visitor, slow: Program) -> None:
    visitor.provoked.add(401)
    await visitor.open(slow.url, ready=False)
    await expect(visitor.page.get_by_role("dialog")).to_have_accessible_description(
        "Enter your API key. It stays in this tab and is deleted when you close it."
    )
    field = visitor.page.get_by_label("API key")
    await field.fill("wrong")
    await field.press("Enter")
    await expect(visitor.page.get_by_text("The server refused this key.")).to_be_visible()
    await visitor.page.get_by_label("API key").fill(KEY)
    await visitor.button("Use this key").click()
    await expect(visitor.at("#count")).to_contain_text("tokens")
    stored = await visitor.page.evaluate("[sessionStorage.getItem('tokka.key'), JSON.stringify(localStorage)]")
    assert stored[0] == KEY
    assert KEY not in stored[1]
    await visitor.page.reload()
    await expect(visitor.at("#count")).to_contain_text("tokens")
