"""The API reference at /docs: Swagger UI works under its content security policy, also below a proxy's prefix."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.nginx import nginx
from tests.program import Program
from tests.web.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_reference_lists_the_api_and_calls_it(visitor: Visitor, fake: Program) -> None:
    # The visitor notes every console error, including breaches of the policy, and every foreign request.
    visitor.url = fake.url
    page = visitor.page
    await page.goto(f"{fake.url}/docs")
    operation = page.locator("[id$='list_models_v1_models_get']")
    await operation.click()
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await expect(operation.locator(".live-responses-table td.response-col_status").last).to_contain_text("200")
    await page.locator("[id$='v1_chat_completions_post']").click()
    await expect(page.get_by_text("max_completion_tokens").first).to_be_visible()
    await page.get_by_role("button", name="Authorize").click()
    await expect(page.get_by_role("heading", name="Available authorizations")).to_be_visible()
    await visitor.leave()


async def test_the_reference_works_below_a_prefix(visitor: Visitor, fake: Program) -> None:
    with nginx(f"rewrite ^/tokka/(.*)$ /$1 break; proxy_pass {fake.url};") as url:
        visitor.url = url
        await visitor.page.goto(f"{url}/tokka/docs")
        await expect(visitor.page.get_by_text("/v1/chat/completions").first).to_be_visible()
        await visitor.leave()
