"""The page of a gateway: models with their states, and a message to a sleeping model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Request, Route, expect

from tests.program import Program, free_port, running
from tests.web.visitor import Visitor
from tokka.engine.fake import ANSWER

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
CHAT = "**/v1/chat/completions"
MODELS = "**/v1/models"
FILE = """\
join: 127.0.0.1:{port}
models:
  viking:
    model: /models/viking
    replicas: {{min: {least}}}
    settings: {{engine: fake, engine_arg: [start_delay_s=1.5]}}
  org/poro: {{model: /models/poro, settings: {{engine: fake}}}}
"""


@contextmanager
def serving(folder: Path, least: int) -> Iterator[Program]:
    """Start a gateway with a sleeping model, and with `least` replicas of another one."""
    file = folder / "fleet.yaml"
    file.write_text(FILE.format(port=free_port(), least=least))
    with running("--fleet", str(file)) as program:
        yield program


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Program]:
    with serving(tmp_path, least=0) as program:
        yield program


def chats(visitor: Visitor) -> list[Request]:
    return [one for one in visitor.requests if one.url.endswith("/v1/chat/completions")]


async def test_message_starts_a_sleeping_model(visitor: Visitor, gateway: Program) -> None:
    await visitor.open(gateway.url, ready=False)
    options = visitor.at("#model option")
    await expect(options).to_have_text(["viking (asleep)", "org/poro (asleep)"])
    await expect(visitor.at("#startup")).to_be_hidden()
    await expect(visitor.at("#greeting")).to_contain_text("This model is asleep. Your first message starts it.")
    await visitor.at("#draft").fill("Hei")
    await visitor.at("#draft").press("Enter")
    await expect(visitor.last).to_contain_text("viking is starting. The answer comes as soon as it is ready.")
    await visitor.ended()
    await expect(visitor.last).to_contain_text(ANSWER)
    await expect(options).to_have_text(["viking (ready)", "org/poro (asleep)"])
    await expect(visitor.at("#count")).to_contain_text("tokens")
    (chat,) = chats(visitor)
    assert chat.headers["x-tokka-wait"] == "120"
    # Neither typing nor the count starts a model.
    await visitor.at("#model").select_option("org/poro")
    await expect(visitor.at("#count")).to_have_text("")
    await visitor.at("#draft").fill("And you?")
    await visitor.at("#model").select_option("viking")
    await expect(visitor.at("#count")).to_contain_text("Draft")
    assert {body["model"] for body in visitor.bodies("/tokenize")} == {"viking"}
    await visitor.ask("And you?")
    assert "x-tokka-wait" not in chats(visitor)[-1].headers
    await visitor.leave()


async def test_model_that_fell_asleep_is_started_again(visitor: Visitor, tmp_path: Path) -> None:
    visitor.provoked.add(503)

    async def pretend(route: Route) -> None:
        if chats(visitor):
            await route.continue_()
            return
        listed = await (await route.fetch()).json()
        await route.fulfill(json={**listed, "data": [{**one, "state": "ready"} for one in listed["data"]]})

    await visitor.page.route(MODELS, pretend)
    with serving(tmp_path, least=1) as gateway:
        await visitor.open(gateway.url, ready=False)
        await visitor.at("#model").select_option("org/poro")
        assert await visitor.ask("Hei") == ANSWER
        await expect(visitor.at("#startup")).to_be_hidden()
        assert [chat.headers.get("x-tokka-wait") for chat in chats(visitor)] == [None, "120"]
        await visitor.leave()


async def test_refusal_of_a_starting_model_is_waited_for(visitor: Visitor, gateway: Program) -> None:
    visitor.provoked.add(503)
    error = {"message": "The model is starting.", "code": "model_starting"}
    await visitor.page.route(
        CHAT,
        lambda route: route.fulfill(status=503, json={"error": error}, headers={"retry-after": "30"}),
        times=1,
    )
    await visitor.open(gateway.url, ready=False)
    await expect(visitor.at("#greeting")).to_be_visible()
    await visitor.say("Hei")
    await expect(visitor.last).to_contain_text("The model is starting. Trying again in")
    await visitor.button("Try now").click()
    await visitor.ended()
    await expect(visitor.last).to_contain_text(ANSWER)
    await visitor.leave()


async def test_list_shows_new_states_when_it_is_used(visitor: Visitor, gateway: Program) -> None:
    await visitor.open(gateway.url, ready=False)
    await expect(visitor.at("#greeting")).to_be_visible()
    await visitor.at("#model").select_option("org/poro")
    with gateway.client() as client:
        headers = {"x-tokka-wait": "60"}
        body = {"model": "org/poro", "prompt": "x", "max_tokens": 1, "stream": True}
        assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
    await visitor.at("#model").focus()
    await expect(visitor.at("#model option")).to_have_text(["viking (asleep)", "org/poro (ready)"])
    await expect(visitor.at("#model")).to_have_value("org/poro")
    await visitor.leave()
