"""Constraints are compiled in a separate process: refusals, turns between tenants, and faults of the process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.grammars.samples import GOOD, SLOW, compiler
from tests.engine.tokenizer import byte_tokenizer, word_tokenizer
from tests.program import eventually, runs
from tokka.core import Constraint, ConstraintKind
from tokka.engine.grammars import compile_queue
from tokka.engine.grammars.compile_queue import MAX_QUEUED
from tokka.engine.grammars.limits import COMPILE_S
from tokka.engine.grammars.service import GrammarService
from tokka.engine.supervision.processes import activity
from tokka.errors import EngineDied, EngineError, InvalidRequest, ServerOverloaded, UnsupportedParameter
from tokka.sandbox.process import start_confined

pytestmark = pytest.mark.engine

# A short text that takes hundreds of megabytes to compile.
LARGE = Constraint("json", '{"type": "array", "items": {"type": "integer"}, "minItems": 4000000}', "large")
NEVER = Constraint("regex", "never seen", "x")


@pytest.fixture
async def grammars() -> AsyncIterator[GrammarService]:
    grammars = GrammarService(byte_tokenizer(), processes=1)
    yield grammars
    await grammars.close()


async def suspended(grammars: GrammarService) -> psutil.Process:
    """Return the compiler process, which gets no CPU until it is resumed."""
    await grammars.grammar(GOOD)
    process = compiler()
    assert process is not None
    process.suspend()
    return process


async def refusal(grammars: GrammarService, constraint: Constraint, tenant: str = "") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await grammars.grammar(constraint, tenant)
    return caught.value


def numbered(number: int) -> Constraint:
    return Constraint("regex", f"constraint{number}", "x")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", '{"type": "object"}'),
        ("regex", "a|b"),
        ("choice", '["a.b", "c|d", "\\"", "ä🦌", "a\\nb"]'),
        ("grammar", 'start: "a" | "b" start'),
        ("grammar", 'root ::= "a" | "b" root'),
        ("grammar", 'start: "<call>" %json {"type": "integer"} "</call>"'),
    ],
)
async def test_each_kind_becomes_a_grammar(grammars: GrammarService, kind: ConstraintKind, text: str) -> None:
    assert await grammars.grammar(Constraint(kind, text, "x"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("regex", r"(a)\1"),
        ("regex", r"[^\s\S]"),
        ("regex", "(" * 3000 + ")" * 3000),
        ("regex", "a{5,2}"),
        ("grammar", 'start: "a'),
        ("grammar", "start: other"),
        ("grammar", "start: start"),
        ("grammar", "no grammar at all"),
        ("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
        (
            "grammar",
            "start: " + " | ".join(f"r{i}" for i in range(3000)) + "".join(f'\nr{i}: "a" r{i}' for i in range(3000)),
        ),
    ],
)
async def test_service_refuses_an_invalid_constraint(grammars: GrammarService, kind: ConstraintKind, text: str) -> None:
    refused = await refusal(grammars, Constraint(kind, text, "field"))
    assert (refused.param, refused.status) == ("field", 400)
    assert len(refused.message) < 500
    await grammars.grammar(GOOD)


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"type": "string", "minLength": 3, "maxLength": 2}, ""),
        (
            {
                "type": "object",
                "properties": {"age": {"type": "integer", "minimum": 3, "maximum": 2}},
                "required": ["age"],
            },
            ".properties.age",
        ),
        ({"properties": {"a": {"items": {"type": "string", "pattern": "(a"}}}}, ".properties.a.items.pattern"),
        ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "a(?!b)"}]}, ".anyOf[1].pattern"),
        (
            {
                "type": "object",
                "properties": {"a": {"allOf": [{"type": "string"}, {"type": "null"}]}},
                "required": ["a"],
            },
            ".properties.a",
        ),
        ({"properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}}, ".properties.a"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
        ({"enum": ["a"], "const": "b"}, ""),
        ({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}, ""),
    ],
)
async def test_a_schema_that_nothing_fits_is_refused_at_its_place(
    grammars: GrammarService, schema: Any, at: str
) -> None:
    refused = await refusal(grammars, Constraint("json", json.dumps(schema), "schema"))
    assert refused.param == f"schema{at}"


async def test_why_is_said_in_our_words(grammars: GrammarService) -> None:
    assert "nothing can match it" in (await refusal(grammars, Constraint("regex", r"[^\s\S]", "x"))).message
    overlapping = Constraint("json", '{"oneOf": [{"type": "number"}, {"type": "integer"}]}', "x")
    assert "use anyOf" in (await refusal(grammars, overlapping)).message


async def test_service_refuses_a_slow_grammar_and_compiles_the_next(grammars: GrammarService) -> None:
    assert "more than 1 s" in (await refusal(grammars, SLOW)).message
    await grammars.grammar(GOOD)
    # The refusal is cached.
    async with asyncio.timeout(0.5):
        assert "more than 1 s" in (await refusal(grammars, SLOW)).message


async def test_service_refuses_a_large_grammar_and_compiles_the_next(grammars: GrammarService) -> None:
    assert "memory" in (await refusal(grammars, LARGE)).message
    await grammars.grammar(GOOD)


async def test_service_compiles_the_next_grammar_when_the_compiler_crashes(grammars: GrammarService) -> None:
    rules = "\n".join(f'a{i} ::= ("x" a{i + 1} | [a-z]+ "y")*' for i in range(200))
    text = f'root ::= a0\n{rules}\na200 ::= "z"'
    assert "nests too deeply" in (await refusal(grammars, Constraint("grammar", text, "deep"))).message
    await grammars.grammar(GOOD)


async def test_refusal_of_an_exploding_pattern_names_its_place() -> None:
    grows = "([a-z]+[a-m][a-z]{30})+ x"
    grammars = GrammarService(word_tokenizer())
    try:
        refused = await refusal(grammars, Constraint("regex", grows, "field"))
        assert refused.param == "field"
        assert "too complex" in refused.message
        schema = {
            "type": "object",
            "properties": {"a": {"type": "string", "pattern": f"^{grows}$"}, "b": {"type": "string"}},
            "required": ["a", "b"],
        }
        assert (await refusal(grammars, Constraint("json", json.dumps(schema), "x"))).param == "x.properties.a.pattern"
    finally:
        await grammars.close()


async def test_many_choices_have_less_room_each() -> None:
    grows = Constraint("regex", "([a-z]+[a-m][a-z]{16})+ x", "field")
    grammars = GrammarService(word_tokenizer())
    try:
        assert await grammars.grammar(grows, choices=8)
        with pytest.raises(InvalidRequest, match="more than 8 choices"):
            await grammars.grammar(grows, choices=9)
        assert await grammars.grammar(GOOD, choices=128)
    finally:
        await grammars.close()


async def test_a_busy_machine_refuses_nothing(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    asking = asyncio.create_task(grammars.grammar(NEVER))
    await asyncio.sleep(2 * COMPILE_S)
    assert not asking.done()
    process.resume()
    assert "never" in await asking
    assert compiler() == process


async def test_grammar_compiles_at_a_retry_when_the_compiler_was_suspended(
    grammars: GrammarService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grammars.grammar(GOOD)
    process = compiler()
    assert process is not None
    monkeypatch.setattr("tokka.engine.grammars.compiler_process._ANSWER_S", 0.2)
    process.suspend()
    with pytest.raises(ServerOverloaded):
        await grammars.grammar(NEVER)
    monkeypatch.undo()
    assert "never" in await grammars.grammar(NEVER)


async def test_a_client_that_leaves_ends_nothing(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    asking = asyncio.create_task(grammars.grammar(Constraint("regex", "left alone", "x")))
    await asyncio.sleep(0)
    asking.cancel()
    process.resume()
    assert "never" in await grammars.grammar(NEVER)
    assert compiler() == process
    # The constraint is not compiled again.
    process.suspend()
    async with asyncio.timeout(0.5):
        assert "left" in await grammars.grammar(Constraint("regex", "left alone", "x"))


async def test_a_process_that_somebody_killed_is_replaced(grammars: GrammarService) -> None:
    await grammars.grammar(GOOD)
    killed = compiler()
    assert killed is not None
    killed.kill()
    assert "never" in await grammars.grammar(NEVER)


async def test_the_same_constraint_is_compiled_once(grammars: GrammarService) -> None:
    first = await grammars.grammar(GOOD)
    process = compiler()
    assert process is not None
    process.suspend()
    async with asyncio.timeout(0.5):
        assert await grammars.grammar(Constraint(GOOD.kind, GOOD.text, "elsewhere")) == first


async def test_equal_constraints_are_queued_once(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    asking = [asyncio.create_task(grammars.grammar(NEVER)) for _ in range(2 * MAX_QUEUED)]
    await asyncio.sleep(0)
    process.resume()
    assert set(await asyncio.gather(*asking)) == {await grammars.grammar(NEVER)}


async def test_tenants_are_compiled_in_turn(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    order: list[str] = []

    async def ask(tenant: str, number: int) -> None:
        await grammars.grammar(Constraint("regex", f"{tenant}{number}", "x"), tenant)
        order.append(f"{tenant}{number}")

    flood = [asyncio.create_task(ask("flood", number)) for number in range(5)]
    await asyncio.sleep(0)
    victim = asyncio.create_task(ask("victim", 0))
    await asyncio.sleep(0)
    process.resume()
    await asyncio.gather(*flood, victim)
    # flood0 already runs when the other tenant's constraint arrives.
    assert order == ["flood0", "flood1", "victim0", "flood2", "flood3", "flood4"]


async def test_flooding_tenant_leaves_a_process_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every tenant that has compiled anything is over its budget.
    monkeypatch.setattr(compile_queue, "BUDGET_S", 1e-9)
    monkeypatch.setattr(compile_queue, "REFILL", 0)
    grammars = GrammarService(byte_tokenizer(), processes=2)
    try:
        await grammars.grammar(GOOD, "flood")
        asking = [asyncio.create_task(grammars.grammar(numbered(number), "flood")) for number in range(3)]
        asking.append(asyncio.create_task(grammars.grammar(NEVER, "victim")))
        await asyncio.sleep(0)
        assert grammars._queue._running == ["flood", "victim"]
        await asyncio.gather(*asking)
    finally:
        await grammars.close()


async def test_full_queue_refuses_at_once_and_says_when_to_come(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    asking = [asyncio.create_task(grammars.grammar(numbered(number), "flood")) for number in range(MAX_QUEUED + 1)]
    await asyncio.sleep(0)
    with pytest.raises(ServerOverloaded) as caught:
        async with asyncio.timeout(0.5):
            await grammars.grammar(NEVER, "flood")
    assert float(caught.value.headers()["retry-after"]) >= 1
    other = asyncio.create_task(grammars.grammar(NEVER, "victim"))
    await asyncio.sleep(0)
    process.resume()
    assert "never" in await other
    await asyncio.gather(*asking)


async def test_queued_constraint_is_refused_after_the_longest_wait(
    grammars: GrammarService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokka.engine.grammars.service.WAIT_S", 0.1)
    process = await suspended(grammars)
    first = asyncio.create_task(grammars.grammar(numbered(0)))
    await asyncio.sleep(0)
    with pytest.raises(ServerOverloaded):
        await grammars.grammar(NEVER)
    process.resume()
    await first


async def test_queued_constraint_is_dropped_when_its_clients_leave(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    asking = [asyncio.create_task(grammars.grammar(numbered(number))) for number in range(MAX_QUEUED + 1)]
    await asyncio.sleep(0)
    for task in asking[1:]:
        task.cancel()
    await asyncio.wait(asking[1:])
    # The queue has room, and the dropped constraints are not compiled.
    last = asyncio.create_task(grammars.grammar(NEVER))
    await asyncio.sleep(0)
    process.resume()
    assert "never" in await last
    assert len(grammars._verdicts._shares[""].verdicts) == 3


async def test_queued_constraint_stays_while_one_client_waits(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    running = asyncio.create_task(grammars.grammar(numbered(0)))
    leaves, stays = (asyncio.create_task(grammars.grammar(NEVER)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait([leaves])
    process.resume()
    assert "never" in await stays
    await running


async def test_started_constraint_goes_on_for_its_other_clients(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    leaves, stays = (asyncio.create_task(grammars.grammar(NEVER)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait([leaves])
    process.resume()
    assert "never" in await stays


async def test_verdicts_are_not_shared_between_tenants(grammars: GrammarService) -> None:
    first = await grammars.grammar(GOOD, "first")
    process = await suspended(grammars)
    async with asyncio.timeout(0.5):
        assert await grammars.grammar(GOOD, "first") == first
    other = asyncio.create_task(grammars.grammar(GOOD, "second"))
    await asyncio.wait([other], timeout=0.2)
    assert not other.done()
    process.resume()
    # Equal texts would share an entry of the engine's own cache.
    assert await other != first


async def test_tenant_pays_for_the_process_it_ended(grammars: GrammarService) -> None:
    await refusal(grammars, SLOW)
    # The next process compiles this one. By then, the CPU time of the ended process has been charged.
    await grammars.grammar(GOOD, "other")
    used = {tenant: account.used_s for tenant, account in grammars._queue._accounts.items()}
    assert used[""] > COMPILE_S + 0.1
    assert used.get("other", 0) < 0.1


async def test_process_that_cannot_be_started_fails_the_request_only(
    grammars: GrammarService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_memory(*_: object, **__: object) -> None:
        raise OSError("Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("tokka.engine.grammars.compiler_process.start_confined", no_memory)
        with pytest.raises(EngineError, match="could not be started"):
            await grammars.grammar(GOOD)
    assert await grammars.grammar(GOOD)


async def test_closing_during_a_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def held(module: str, *, line_bytes: int) -> asyncio.subprocess.Process:
        process = await start_confined(module, line_bytes=line_bytes)
        started.set()
        await go_on.wait()
        return process

    monkeypatch.setattr("tokka.engine.grammars.compiler_process.start_confined", held)
    grammars = GrammarService(byte_tokenizer(), processes=1)
    starting = asyncio.create_task(grammars.start())
    await started.wait()
    await grammars.close()
    go_on.set()
    assert not await starting
    assert compiler() is None


async def test_closing_ends_queued_requests(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    asking = [asyncio.create_task(grammars.grammar(numbered(number))) for number in range(3)]
    await asyncio.sleep(0)
    await grammars.close()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in ended] == [EngineDied] * 3
    assert not runs(process)


async def test_its_work_is_not_taken_for_the_engine_s(grammars: GrammarService) -> None:
    process = await suspended(grammars)
    assert process.pid not in activity().stopped


async def test_closed_it_starts_no_process(grammars: GrammarService) -> None:
    await grammars.close()
    with pytest.raises(EngineDied):
        await grammars.grammar(GOOD)
    assert compiler() is None


async def test_a_tokenizer_of_another_kind_is_said_to_be_the_reason() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        await GrammarService(None).grammar(GOOD)
    assert caught.value.param == "good"


def test_the_process_ends_with_the_server() -> None:
    code = """
import asyncio
from tests.engine.grammars.samples import GOOD, compiler
from tests.engine.tokenizer import byte_tokenizer
from tokka.engine.grammars.service import GrammarService
async def main():
    grammars = GrammarService(byte_tokenizer(), processes=1)
    await grammars.grammar(GOOD)
    print(compiler().pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        process = psutil.Process(int(server.stdout.readline()))
        server.send_signal(signal.SIGKILL)
        eventually(lambda: not runs(process), within_s=10)
