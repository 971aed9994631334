"""Drafts: unsent text stays, and the Enter key works as in other programs."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, Route, expect

from tests.program import Program
from tests.web.visitor import Visitor, visit

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
SUGGESTION = "Why is the sky blue?"


async def test_a_suggestion_leaves_the_draft(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.at("#draft").fill("My own question")
    await visitor.button(SUGGESTION).click()
    await visitor.ended()
    await expect(visitor.at(".question")).to_have_text(SUGGESTION)
    await expect(visitor.at("#draft")).to_have_value("My own question")


async def test_draft_stays_when_the_server_has_not_answered_yet(visitor: Visitor, fake: Program) -> None:
    is_there = asyncio.Event()

    async def wait(route: Route) -> None:
        await is_there.wait()
        await route.continue_()

    await visitor.page.route("**/v1/models", wait)
    await visitor.open(fake.url, ready=False)
    async with visitor.page.expect_request("**/v1/models"):
        await visitor.say("First")
    await visitor.at("#draft").fill("Second")
    is_there.set()
    await visitor.ended()
    await expect(visitor.at(".question")).to_have_text("First")
    await expect(visitor.at("#draft")).to_have_value("Second")


async def test_a_question_taken_back_goes_before_the_draft(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("First")
    await visitor.at("#draft").fill("Second")
    await visitor.button("Remove").click()
    await expect(visitor.at("#draft")).to_have_value("First\n\nSecond")


async def test_an_enter_that_ends_composing_does_not_send(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.at("#draft").fill("にほんご")
    await visitor.at("#draft").evaluate(
        """draft => draft.dispatchEvent(
          new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true }),
        )"""
    )
    await expect(visitor.at("#draft")).to_have_value("にほんご")
    await expect(visitor.at(".question")).to_have_count(0)
    await visitor.at("#draft").press("Enter")
    await expect(visitor.at(".question")).to_have_text("にほんご")
    await visitor.ended()


async def test_where_fingers_type_enter_starts_a_line(browser: Browser, fake: Program) -> None:
    context = await browser.new_context(viewport={"width": 800, "height": 600}, has_touch=True, is_mobile=True)
    toucher = await visit(context)
    await toucher.open(fake.url)
    await expect(toucher.page.get_by_text("Enter sends")).to_be_hidden()
    await expect(toucher.at("#draft")).to_have_accessible_description("")
    await toucher.at("#draft").fill("One")
    await toucher.at("#draft").press("Enter")
    await toucher.page.keyboard.type("two")
    await expect(toucher.at("#draft")).to_have_value("One\ntwo")
    await toucher.button("Send").tap()
    await toucher.ended()
    await expect(toucher.at(".question")).to_have_text("One\ntwo")
    await context.close()
    assert toucher.troubles == []
