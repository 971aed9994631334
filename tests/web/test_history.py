"""Conversations in the browser's storage: across reloads, and with a full, blocked or damaged storage."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.program import Program
from tests.web.visitor import Visitor
from tokka.engine.fake import ANSWER

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
CHOICE = "#conversations .title"
# Fills the storage completely.
FILL = """() => {
  for (let size = 1 << 22; size; size >>= 1) {
    try { localStorage.setItem(`rest ${size}`, 'x'.repeat(size)); } catch { /* too much */ }
  }
}"""


async def test_a_reload_keeps_conversation_settings_and_draft(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.set("Temperature", "0.5")
    await visitor.set("System prompt", "Be brief.")
    await visitor.ask("Hei")
    await visitor.at("#draft").fill("And then")
    await visitor.page.reload()
    await expect(visitor.at(".question")).to_have_text("Hei")
    await expect(visitor.last).to_contain_text(ANSWER)
    await expect(visitor.last).to_contain_text("Finished")
    await expect(visitor.at("#draft")).to_have_value("And then")
    await expect(visitor.page.get_by_label("Temperature")).to_have_value("0.5")
    await expect(visitor.page.get_by_label("System prompt")).to_have_value("Be brief.")


async def test_an_answer_that_a_reload_cuts_stays_as_far_as_it_came(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon a time")
    await guest.page.reload()
    await expect(guest.last).to_contain_text("Once upon a time")
    await expect(guest.last).to_contain_text("Cut off when the page was closed")
    await expect(guest.button("Continue")).to_be_visible()


async def test_conversations_are_listed_renamed_and_deleted(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("First")
    await visitor.button("New conversation").click()
    await visitor.ask("Second")
    await expect(visitor.at(CHOICE)).to_have_text(["Second", "First"])
    await visitor.button("First").click()
    await expect(visitor.at(".question")).to_have_text("First")
    await (
        visitor.at(
            "#conversations li",
        )
        .filter(has_text="First")
        .hover()
    )
    await visitor.button("Rename First").click()
    await visitor.page.get_by_label("Name", exact=True).fill("<b>Renamed</b>")
    await visitor.page.get_by_label("Name", exact=True).press("Enter")
    await expect(visitor.at(CHOICE)).to_have_text(["Second", "<b>Renamed</b>"])
    await visitor.at("#conversations li").filter(has_text="Second").hover()
    await visitor.button("Delete Second").click()
    await visitor.button("Delete").click()
    await expect(visitor.at(CHOICE)).to_have_text(["<b>Renamed</b>"])
    await visitor.page.reload()
    await expect(visitor.at(CHOICE)).to_have_text(["<b>Renamed</b>"])


async def test_a_full_storage_is_said_and_ends_nothing(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.page.evaluate(FILL)
    assert await visitor.ask("Hei") == ANSWER
    await expect(visitor.at("#notice")).to_contain_text("storage is full")
    await visitor.page.evaluate("localStorage.clear()")
    await visitor.ask("Hei")
    await expect(visitor.at("#notice")).to_be_hidden()


async def test_a_full_storage_is_said_while_the_answer_is_written(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await guest.button("Stop").click()
    await guest.page.evaluate(FILL)
    await guest.say("Another one")
    await expect(guest.at("#notice")).to_contain_text("storage is full")
    await expect(guest.at("#stop")).to_be_visible()
    await guest.button("Stop").click()
    await expect(guest.last).to_contain_text("Stopped by you")


async def test_a_system_prompt_before_the_first_turn_outlives_a_reload(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.set("System prompt", "Be brief.")
    await visitor.page.reload()
    await expect(visitor.page.get_by_label("System prompt")).to_have_value("Be brief.")
    await visitor.ask("Hei")
    await visitor.button("New conversation").click()
    await visitor.page.reload()
    await expect(visitor.answers).to_have_count(0)
    await expect(visitor.page.get_by_label("System prompt")).to_have_value("Be brief.")
    await expect(visitor.at(CHOICE)).to_have_text(["Hei"])


async def test_a_blocked_storage_is_said_and_ends_nothing(visitor: Visitor, fake: Program) -> None:
    block = "Object.defineProperty(window, '{}', {{ get() {{ throw new DOMException('', 'SecurityError'); }} }});"
    await visitor.page.add_init_script(block.format("localStorage") + block.format("sessionStorage"))
    await visitor.open(fake.url)
    assert await visitor.ask("Hei") == ANSWER
    await expect(visitor.at("#notice")).to_contain_text("storage is blocked")
    await expect(visitor.at(CHOICE)).to_have_text(["Hei"])


async def test_page_ignores_stored_data_that_is_not_a_conversation(visitor: Visitor, fake: Program) -> None:
    strange = ["nonsense", "null", "[]", '{"id": 5}', '{"id":"a","title":"a","system":"","updatedMs":1,"turns":[null]}']
    writes = "".join(f"localStorage.setItem('tokka.conversation.{n}', {text!r});" for n, text in enumerate(strange))
    await visitor.page.add_init_script(writes + "localStorage.setItem('tokka.settings', '{');")
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    await expect(visitor.at(CHOICE)).to_have_text(["Hei"])


async def test_the_oldest_of_more_than_a_hundred_makes_room(visitor: Visitor, fake: Program) -> None:
    await visitor.page.add_init_script(
        """if (!localStorage.length) for (let n = 0; n < 100; n += 1) {
          const fixed = { isNamed: true, system: '', turns: [] };
          const conversation = { ...fixed, id: `c${n}`, title: `Number ${n}`, updatedMs: n };
          localStorage.setItem(`tokka.conversation.c${n}`, JSON.stringify(conversation));
        }"""
    )
    await visitor.open(fake.url)
    await expect(visitor.at(CHOICE)).to_have_count(100)
    await visitor.ask("Hei")
    await expect(visitor.at("#notice")).to_contain_text("The oldest one was deleted")
    await expect(visitor.at(CHOICE)).to_have_count(100)
    await expect(visitor.button("Number 0")).to_have_count(0)
    await expect(visitor.button("Number 1")).to_have_count(1)
