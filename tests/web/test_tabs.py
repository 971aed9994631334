"""Several tabs on the same conversations: each tab shows the text of the others, and no message is lost."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import expect

from tests.program import Program
from tests.web.conftest import KEY
from tests.web.visitor import Visitor, visit

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
CHOICE = "#conversations .title"
NOBODY = "Somebody was asked"


async def beside(first: Visitor) -> Visitor:
    """Open a second tab of the same browser."""
    other = await visit(first.page.context)
    await other.page.add_init_script(f"sessionStorage.setItem('tokka.key', '{KEY}')")
    await other.open(first.url)
    return other


def written(at_ms: str) -> str:
    """Return a script that stores a conversation as if another tab wrote it last at `at_ms`."""
    answer = {"role": "assistant", "text": "As far as it came", "model": "some-model"}
    conversation = {
        "id": "c",
        "title": NOBODY,
        "isNamed": False,
        "updatedMs": 1,
        "system": "",
        "turns": [{"role": "user", "text": NOBODY}, answer],
    }
    fields = f"...{json.dumps(conversation)}, writer: {{ tab: 'another', atMs: {at_ms} }}"
    return f"localStorage.setItem('tokka.conversation.c', JSON.stringify({{ {fields} }}));"


async def test_tabs_see_each_other(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    other = await visit(visitor.page.context)
    await other.open(fake.url)
    await expect(other.at(".question")).to_have_text("Hei")
    await other.ask("And you?")
    await expect(visitor.at(".question")).to_have_text(["Hei", "And you?"])
    await expect(visitor.last).to_contain_text("Finished")
    await other.button("New conversation").click()
    await other.ask("Something else")
    await expect(visitor.at(CHOICE)).to_have_text(["Something else", "Hei"])
    await expect(visitor.at(".question")).to_have_text(["Hei", "And you?"])
    assert other.troubles == []


async def test_a_name_that_is_given_late_loses_no_turn(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    await visitor.at("#conversations li").hover()
    await visitor.button("Rename Hei").click()
    other = await visit(visitor.page.context)
    await other.open(fake.url)
    await other.ask("And you?")
    await expect(visitor.at(".question")).to_have_text(["Hei", "And you?"])
    await visitor.page.get_by_label("Name", exact=True).fill("Greetings")
    await visitor.page.get_by_label("Name", exact=True).press("Enter")
    await expect(other.at(CHOICE)).to_have_text(["Greetings"])
    await other.page.reload()
    await expect(other.at(".question")).to_have_text(["Hei", "And you?"])
    assert other.troubles == []


async def test_new_tab_begins_a_conversation_when_another_tab_writes(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon")
    other = await beside(guest)
    await expect(other.at("#greeting")).to_be_visible()
    await expect(other.button("Tell me a story")).to_be_visible()
    await expect(other.answers).to_have_count(0)
    await guest.button("Stop").click()
    await expect(guest.last).to_contain_text("Stopped by you")
    assert other.troubles == []


async def test_tab_shows_the_writing_of_another_tab_and_does_not_edit_it(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    other = await beside(guest)
    await other.button("Tell me a story").click()
    await expect(other.last).to_contain_text("Being written in another tab")
    await expect(other.last.get_by_role("button")).to_have_count(0)
    await expect(other.page.get_by_label("System prompt")).not_to_be_editable()
    await other.say("And then?")
    await other.at("#conversations li").hover()
    await other.button("Delete Tell me a story").click()
    await expect(other.at("#notice")).to_contain_text("being written in another tab")
    await expect(other.at("dialog")).to_be_hidden()
    await expect(other.at(".question")).to_have_count(1)
    await expect(other.at("#draft")).to_have_value("And then?")
    await guest.button("Stop").click()
    await expect(other.last).to_contain_text("Stopped by you")
    await expect(other.at("#notice")).to_be_hidden()
    await expect(other.page.get_by_label("System prompt")).to_be_editable()
    await other.at("#draft").press("Enter")
    await expect(guest.at(".question")).to_have_text(["Tell me a story", "And then?"])
    await expect(guest.last).to_contain_text("Being written in another tab")
    await other.button("Stop").click()
    await expect(guest.last).to_contain_text("Stopped by you")
    await expect(other.at(".question")).to_have_text(["Tell me a story", "And then?"])
    assert other.troubles == []


async def test_tab_keeps_its_scroll_position_when_another_tab_writes(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    other = await beside(guest)
    await other.page.set_viewport_size({"width": 400, "height": 300})
    await other.button("Conversations").click()
    await other.button("Tell me a story").click()
    await expect(other.last).to_contain_text("Being written")
    await other.at(".question").evaluate("question => getSelection().selectAllChildren(question)")
    await other.page.evaluate("() => { document.querySelector('.question').isTheSame = true; }")
    await other.scrolled(60, 0)
    await other.at("#scroller").hover()
    await other.page.mouse.wheel(0, -5000)
    await expect(other.button("Latest")).to_be_visible()
    # The writing tab has saved the conversation several times since.
    above, _ = await other.scrolled(0, 250)
    assert above == 0
    shown = """() => ({
      selected: getSelection().toString().trim(),
      isTheSame: document.querySelector('.question').isTheSame,
    })"""
    assert await other.page.evaluate(shown) == {"selected": "Tell me a story", "isTheSame": True}
    await guest.button("Stop").click()
    await expect(guest.last).to_contain_text("Stopped by you")
    assert other.troubles == []


async def test_a_tab_that_is_silent_writes_no_more(visitor: Visitor, fake: Program) -> None:
    await visitor.page.clock.install()
    await visitor.page.add_init_script(f"if (!localStorage.length) {{ {written('Date.now()')} }}")
    await visitor.open(fake.url)
    await visitor.button(NOBODY).click()
    await expect(visitor.last).to_contain_text("As far as it came")
    await expect(visitor.last).to_contain_text("Being written in another tab")
    await visitor.page.clock.fast_forward(71_000)
    await expect(visitor.last).to_contain_text("Cut off when the page was closed")
    await expect(visitor.button("Continue")).to_be_visible()


async def test_conversation_can_continue_when_its_writing_tab_is_gone(visitor: Visitor, fake: Program) -> None:
    last = "localStorage.setItem('tokka.last', 'c');"
    await visitor.page.add_init_script(f"if (!localStorage.length) {{ {last} {written('Date.now() - 71000')} }}")
    await visitor.open(fake.url)
    await expect(visitor.last).to_contain_text("Cut off when the page was closed")
    await expect(visitor.last.locator(".figures")).to_be_empty()
    await visitor.ask("And you?")
    await expect(visitor.at(".question")).to_have_text([NOBODY, "And you?"])


async def test_waking_tab_keeps_newer_writes_of_other_tabs(guest: Visitor) -> None:
    await guest.say("Tell me a story")
    await expect(guest.last).to_contain_text("Once upon")
    other = await visit(guest.page.context)
    await other.open(guest.url, ready=False)
    # Imitate another tab that continued the conversation during a long silence of the guest's tab.
    await other.page.evaluate(
        """() => {
          const name = Object.keys(localStorage).find((one) => one.startsWith("tokka.conversation."));
          const conversation = JSON.parse(localStorage.getItem(name));
          const turns = [...conversation.turns, { role: "user", text: "And then?" }];
          const since = { turns, writer: null, updatedMs: conversation.updatedMs + 1 };
          localStorage.setItem(name, JSON.stringify({ ...conversation, ...since }));
        }"""
    )
    await expect(guest.at(".question")).to_have_text(["Tell me a story", "And then?"])
    await expect(guest.at("#send")).to_be_visible()
    await guest.page.reload()
    await expect(guest.at(".question")).to_have_text(["Tell me a story", "And then?"])
