"""Interruptions: a busy server, a refusal, another model, a key without models, and a response from another program."""

from __future__ import annotations

import pytest
from playwright.async_api import Route, expect

from tests.program import Program
from tests.web.visitor import Visitor
from tokka.engine.fake import ANSWER

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
CHAT = "**/v1/chat/completions"
MODELS = "**/v1/models"


async def hang(route: Route) -> None:
    """Leave the request without a response."""


async def test_a_busy_server_can_be_asked_at_once_each_time(visitor: Visitor, fake: Program) -> None:
    visitor.provoked.add(503)
    await visitor.open(fake.url)
    waiting = [128, 64, 32]

    async def refuse(route: Route) -> None:
        error = {"message": f"{waiting.pop(0)} requests are waiting already.", "code": "server_overloaded"}
        await route.fulfill(status=503, json={"error": error}, headers={"retry-after": "30"})

    await visitor.page.route(CHAT, refuse, times=3)
    await visitor.say("Hei")
    for number in (128, 64, 32):
        await expect(visitor.last).to_contain_text(f"{number} requests are waiting already.")
        await visitor.button("Try now").click()
    await visitor.ended()
    await expect(visitor.last).to_contain_text(ANSWER)


async def test_an_answer_stays_if_the_one_to_replace_it_is_refused(visitor: Visitor, fake: Program) -> None:
    visitor.provoked.add(400)
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    error = {"error": {"message": "This is not allowed today.", "code": "refused"}}
    await visitor.page.route(CHAT, lambda route: route.fulfill(status=400, json=error), times=1)
    await visitor.button("Regenerate").click()
    await expect(visitor.at("#notice")).to_have_text("This is not allowed today. The earlier answer is kept.")
    for _ in range(2):
        await expect(visitor.last).to_contain_text(ANSWER)
        await expect(visitor.last).to_contain_text("Finished")
        await visitor.page.reload()
    await visitor.button("Regenerate").click()
    await visitor.ended()
    await expect(visitor.last).to_contain_text(ANSWER)
    await expect(visitor.at("#notice")).to_be_hidden()


async def test_an_answer_stays_if_the_one_to_replace_it_is_stopped_or_left(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    await visitor.ask("Hei")
    await visitor.page.route(CHAT, hang)
    await visitor.button("Regenerate").click()
    await expect(visitor.last).not_to_contain_text(ANSWER)
    await visitor.button("Stop").click()
    await expect(visitor.last).to_contain_text(ANSWER)
    await expect(visitor.last).to_contain_text("Finished")
    await visitor.button("Regenerate").click()
    await expect(visitor.last).not_to_contain_text(ANSWER)
    await visitor.page.reload()
    await expect(visitor.last).to_contain_text(ANSWER)
    await expect(visitor.last).to_contain_text("Finished")


async def meet_another_model(visitor: Visitor, fake: Program) -> None:
    """Open the page while the server lists another model than it has afterwards."""
    visitor.provoked.add(404)
    former = {"object": "list", "data": [{"id": "former-model", "max_model_len": 4096}]}
    await visitor.page.route(MODELS, lambda route: route.fulfill(json=former))
    async with visitor.page.expect_response("**/tokenize"):
        await visitor.open(fake.url, ready=False)
    await expect(visitor.at("#greeting-title")).to_have_text("Talk to former-model")
    await visitor.page.unroute(MODELS)


async def test_a_model_that_is_gone_is_replaced_by_the_one_there_is(visitor: Visitor, fake: Program) -> None:
    await meet_another_model(visitor, fake)
    assert await visitor.ask("Hei") == ANSWER
    await expect(visitor.at("#model")).to_have_value(fake.model)
    await expect(visitor.last.locator(".who")).to_have_text(fake.model)
    assert [body["model"] for body in visitor.bodies("/v1/chat/completions")] == ["former-model", fake.model]


async def test_a_server_that_comes_back_is_asked_for_its_models(visitor: Visitor, fake: Program) -> None:
    await meet_another_model(visitor, fake)
    await visitor.page.route(CHAT, lambda route: route.abort(), times=1)
    assert await visitor.ask("Hei") == ANSWER
    await expect(visitor.at("#model")).to_have_value(fake.model)
    assert [body["model"] for body in visitor.bodies("/v1/chat/completions")] == ["former-model", fake.model]
    # The browser logs the failed request.
    assert all("ERR_FAILED" in trouble for trouble in visitor.troubles)
    visitor.troubles.clear()


async def test_a_key_for_no_model_can_be_changed(visitor: Visitor, fake: Program) -> None:
    async def limit(route: Route) -> None:
        if route.request.headers["authorization"] == "Bearer limited":
            await route.fulfill(json={"object": "list", "data": []})
        else:
            await route.continue_()

    await visitor.page.route(MODELS, limit)
    await visitor.page.add_init_script("sessionStorage.setItem('tokka.key', 'limited')")
    await visitor.open(fake.url, ready=False)
    await expect(visitor.at("#notice")).to_contain_text("This key cannot use any model of this server.")
    await visitor.at("#notice").get_by_role("button", name="Change the key").click()
    await visitor.page.get_by_label("API key").fill("better")
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.at("#count")).to_contain_text("tokens")
    await expect(visitor.at("#notice")).to_be_hidden()


@pytest.mark.parametrize("body", ["<!doctype html><title>Log in</title>", "null", '{"data": 5}'])
async def test_page_reports_a_response_from_another_server(visitor: Visitor, fake: Program, body: str) -> None:
    await visitor.page.route(MODELS, lambda route: route.fulfill(body=body), times=1)
    await visitor.open(fake.url, ready=False)
    await expect(visitor.at("#notice")).to_contain_text("This response is not from the Tokka server")
    assert await visitor.ask("Hei") == ANSWER
    await expect(visitor.at("#notice")).to_be_hidden()
    await visitor.page.route(CHAT, lambda route: route.fulfill(body=f"data: <p>\n\n{body}"), times=1)
    await visitor.say("And you?")
    await expect(visitor.last).to_contain_text("This response is not from the Tokka server")
