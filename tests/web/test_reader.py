"""Reading: by keyboard, with a screen reader, on a small screen, in dark colours, in the middle of a long answer."""

from __future__ import annotations

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import ViewportSize, expect

from tests.program import Program, running
from tests.web.conftest import KEY
from tests.web.visitor import Visitor
from tokka.engine.fake import ANSWER

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
NARROW = ViewportSize(width=320, height=640)


async def test_a_conversation_needs_no_mouse(guest: Visitor) -> None:
    keys = guest.page.keyboard
    await expect(guest.at("#draft")).to_be_focused()
    await keys.type("Line one")
    await keys.press("Shift+Enter")
    await keys.type("line two")
    await keys.press("Enter")
    await expect(guest.at(".question")).to_have_text("Line one\nline two")
    await expect(guest.last).to_contain_text("Once upon")
    await expect(guest.at("#draft")).to_be_focused()
    await keys.press("Escape")
    await expect(guest.last).to_contain_text("Stopped by you")
    # Shift+Tab leads from the message box back over the buttons of the answer.
    names = []
    for _ in range(4):
        await keys.press("Shift+Tab")
        names.append(await guest.page.evaluate("document.activeElement.innerText"))
    assert names == ["Remove", "Regenerate", "Copy", "Continue"]
    await keys.press("Enter")
    await expect(guest.button("Stop")).to_be_visible()
    await keys.press("Escape")
    await expect(guest.last).to_contain_text("Stopped by you")


async def test_the_first_stop_leads_to_the_box(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.at("a").first.focus()
    await expect(visitor.page.get_by_text("Skip to the message box")).to_be_in_viewport()
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.at("#draft")).to_be_focused()


async def test_axe_finds_nothing(visitor: Visitor, hostile: Program) -> None:
    await visitor.open(hostile.url)
    await visitor.page.get_by_text("Advanced").click()
    await visitor.ask("Hei")
    for size in (ViewportSize(width=1280, height=800), NARROW):
        await visitor.page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            await visitor.page.emulate_media(color_scheme=scheme)
            # Axe injects its own script through the debugger, which bypasses the page's policy.
            found = await Axe().run(visitor.page)
            assert found.violations_count == 0, found.generate_report()


async def test_320_pixels_need_no_sideways_scrolling(visitor: Visitor, fake: Program) -> None:
    await visitor.page.set_viewport_size(NARROW)
    await visitor.open(fake.url)
    await visitor.ask("x" * 300)
    await expect(visitor.at("#sidebar")).to_be_hidden()
    for name in ("Conversations", "Settings"):
        assert await visitor.page.evaluate("document.documentElement.scrollWidth") <= 320
        await visitor.button(name).click()
        await expect(visitor.at("#page > .drawer:visible")).to_have_count(1)
        assert await visitor.page.evaluate("document.documentElement.scrollWidth") <= 320
        await visitor.page.keyboard.press("Escape")
        await expect(visitor.at("#page > .drawer:visible")).to_have_count(0)
        await expect(visitor.button(name)).to_be_focused()
    wide = "main *:not(pre, pre *, .unseen, option)"
    edges = await visitor.at(wide).evaluate_all("all => Math.max(...all.map(one => one.getBoundingClientRect().right))")
    assert edges <= 320


async def test_colours_follow_the_system_until_chosen(visitor: Visitor, fake: Program) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    await visitor.page.emulate_media(color_scheme="dark")
    await visitor.open(fake.url)
    dark = await visitor.page.evaluate(paper)
    await visitor.page.get_by_label("Colours").select_option("Light")
    light = await visitor.page.evaluate(paper)
    assert light != dark
    await visitor.page.reload()
    assert await visitor.page.evaluate(paper) == light
    await expect(visitor.page.get_by_label("Colours")).to_have_value("light")


async def test_the_end_is_followed_only_while_the_reader_is_there(guest: Visitor) -> None:
    await guest.page.set_viewport_size({"width": 400, "height": 300})
    await guest.say("Tell me a story")
    _, below = await guest.scrolled(60, 0)
    assert below < 2
    await guest.at("#scroller").hover()
    await guest.page.mouse.wheel(0, -1000)
    await expect(guest.button("Latest")).to_be_visible()
    above, _ = await guest.scrolled(0, 150)
    assert above == 0
    await guest.button("Latest").click()
    _, below = await guest.scrolled(60, 0)
    assert below < 2
    await expect(guest.button("Latest")).to_be_hidden()


async def test_page_shows_start_phases_and_then_answers(visitor: Visitor) -> None:
    visitor.provoked.add(503)
    with running("--engine", "fake", "--engine-arg", "start_delay_s=4", wait=False) as program:
        await visitor.open(program.url, ready=False)
        await expect(visitor.at("#startup")).to_contain_text("The model is starting")
        await expect(visitor.at("#phases")).to_contain_text("Loading weights")
        await visitor.say("Hei")
        await expect(visitor.at("#startup")).to_be_visible()
        await visitor.ended()
        await expect(visitor.at("#startup")).to_be_hidden()
        await expect(visitor.last).to_contain_text(ANSWER)
        await visitor.leave()


async def test_a_server_that_is_gone_is_waited_for(guest: Visitor) -> None:
    # The browser logs each failed request.
    await guest.page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    await guest.page.route("**/startupz", lambda route: route.abort(), times=1)
    await guest.say("Tell me a story")
    await expect(guest.at("#startup")).to_contain_text("No connection to the server")
    await expect(guest.last).to_contain_text("Once upon")
    await guest.button("Stop").click()
    assert all("ERR_FAILED" in trouble for trouble in guest.troubles)
    guest.troubles.clear()


async def test_a_base_model_is_offered_texts_to_go_on_with(visitor: Visitor) -> None:
    visitor.provoked.add(400)
    base = ["--engine-arg", "has_chat_template=false", "--engine-arg", "answer= of Finland."]
    with running("--engine", "fake", *base) as program:
        await visitor.open(program.url)
        await expect(visitor.at("#greeting")).to_contain_text("This is a base model")
        await visitor.ask("Helsinki is the capital")
        await expect(visitor.last.locator(".prose")).to_have_text("of Finland.")
        await visitor.say(" And so on")
        await visitor.ended()
        first, second = visitor.bodies("/v1/completions")
        assert first["prompt"] == "Helsinki is the capital"
        assert first["max_tokens"] == 200
        assert second["prompt"] == "Helsinki is the capital of Finland. And so on"
        assert visitor.bodies("/v1/chat/completions") == []
        await visitor.leave()


async def test_page_asks_for_a_key_when_the_dialog_is_cancelled(visitor: Visitor, slow: Program) -> None:
    visitor.provoked.add(401)
    await visitor.open(slow.url, ready=False)
    await visitor.button("Cancel").click()
    await expect(visitor.at("#notice")).to_contain_text("This server needs a key.")
    await visitor.say("Tell me a story")
    await visitor.page.get_by_label("API key").fill(KEY)
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.last).to_contain_text("Once upon")
    await visitor.button("Stop").click()
    await expect(visitor.last).to_contain_text("Stopped by you")
