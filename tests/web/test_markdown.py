"""Markdown on the page: correct, the same for any pieces of the text, never executed, and never slow."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.program import Program
from tests.web.conftest import ATTACKS
from tests.web.visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SAMPLE = """# Title

A *first* and **second**, ***both***, ~~gone~~, `code **x**`, snake_case_name, 2 * 3 * 4, \\*not\\*
and [a link](https://example.org/a_(b) "t"), https://example.org/x_y.

1. one
   - nested *item*
   - other
2. two

   ```python
   def f(): pass
   ```

> quoted
> - list

| a | b |
|:--|--:|
| 1 \\| 2 | `c` |

---
~~~
open <b> fence
\ttab"""

SHOWN = (
    '<h3 class="level-1">Title</h3>'
    "<p>A <em>first</em> and <strong>second</strong>, <strong><em>both</em></strong>, <s>gone</s>, "
    "<code>code **x**</code>, snake_case_name, 2 * 3 * 4, *not*<br>and "
    '<a href="https://example.org/a_(b)" target="_blank" rel="noopener noreferrer">a link</a>, '
    '<a href="https://example.org/x_y" target="_blank" rel="noopener noreferrer">https://example.org/x_y</a>.</p>'
    '<ol start="1"><li><p>one</p><ul><li><p>nested <em>item</em></p></li><li><p>other</p></li></ul></li>'
    "<li><p>two</p>CODE:python:def f(): pass</li></ol>"
    "<blockquote><p>quoted</p><ul><li><p>list</p></li></ul></blockquote>"
    '<table><thead><tr><th scope="col" class="left">a</th><th scope="col" class="right">b</th></tr></thead>'
    '<tbody><tr><td class="left">1 | 2</td><td class="right"><code>c</code></td></tr></tbody></table>'
    "<hr>CODE:text:open &lt;b&gt; fence\n\ttab"
)

# Shows a text in pieces; returns the markup and the milliseconds it took. A code block becomes its language and text.
SHOW = """async ([module, pieces]) => {
  const { Prose } = await import(module);
  const root = document.createElement('div');
  const prose = new Prose(root);
  const began = performance.now();
  let text = '';
  for (const piece of pieces) prose.show(text += piece);
  const took = performance.now() - began;
  for (const code of root.querySelectorAll('.code')) {
    code.replaceWith(`CODE:${code.querySelector('.bar span').textContent}:${code.querySelector('code').textContent}`);
  }
  for (const table of root.querySelectorAll('.table')) table.replaceWith(...table.childNodes);
  root.normalize();
  return [root.innerHTML, took];
}"""


async def test_nothing_of_an_answer_or_a_question_runs(visitor: Visitor, hostile: Program) -> None:
    await visitor.open(hostile.url)
    await visitor.set("System prompt", ATTACKS)
    await visitor.ask(ATTACKS)
    await expect(visitor.at(".question")).to_contain_text("<script>alert(2)</script>")
    await expect(visitor.last).to_contain_text("<script>alert(2)</script>")
    turns = visitor.at("#turns")
    for tag in ("script", "img", "iframe", "style", "svg:not(button svg)", "[onerror]", "[onload]", "[onmouseover]"):
        await expect(turns.locator(tag)).to_have_count(0)
    links = await turns.locator("a").evaluate_all("links => links.map(link => [link.href, link.rel])")
    assert {rel for _, rel in links} == {"noopener noreferrer"}
    assert all(href.startswith(("https://evil.example/pixel", "https://good.example/")) for href, _ in links)
    # The stored text is as harmless after a reload. The visitor notes dialogs and foreign requests.
    await visitor.page.reload()
    await expect(visitor.last).to_contain_text("<script>alert(2)</script>")


async def test_markdown_is_shown_the_same_at_once_and_by_the_character(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    module = await visitor.module("prose.js")
    whole, _ = await visitor.page.evaluate(SHOW, [module, [SAMPLE]])
    assert whole == SHOWN
    pieces, _ = await visitor.page.evaluate(SHOW, [module, list(SAMPLE)])
    assert pieces == SHOWN


async def test_the_browser_itself_refuses_markup(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    script = "try { document.createElement('p').innerHTML = '<b>x</b>'; 'made' } catch (error) { error.name }"
    handle = await visitor.page.evaluate_handle("document")
    assert await handle.evaluate(f"() => {{ return eval({script!r}) }}") == "TypeError"
    assert visitor.troubles
    visitor.troubles.clear()


async def test_the_cost_of_a_text_grows_with_its_length(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    module = await visitor.module("prose.js")
    lines = ["word *and* `more` ", "- item of a list\n", "a line of\n\na paragraph\n", "| a | b |\n|---|---|\n", "> "]
    for piece in [*lines, "**", "[", "`", "[a](", "<", "\\", "https://", "```\n"]:
        # 30 frames of one long answer: a quadratic cost would take minutes.
        pieces = [piece * (30_000 // len(piece) // 30)] * 30
        _, took_ms = await visitor.page.evaluate(SHOW, [module, pieces])
        assert took_ms < 5000, piece


async def test_a_long_code_block_is_written_on_and_not_anew(visitor: Visitor, fake: Program) -> None:
    await visitor.open(fake.url)
    script = """async (module) => {
      const { Prose } = await import(module);
      const root = document.createElement('div');
      const prose = new Prose(root);
      prose.show('```js\\nlet a;\\n');
      const before = root.querySelector('code');
      prose.show('```js\\nlet a;\\nlet b;\\n');
      return root.querySelector('code') === before && before.childNodes.length;
    }"""
    assert await visitor.page.evaluate(script, await visitor.module("prose.js")) == 2
