"""Tools and tool choices of a request, and the constraints they lead to."""

from __future__ import annotations

from typing import Any

from tests.protocol.bodies import chat
from tokka.core import Constraint

NAMED = {"type": "function", "function": {"name": "f"}}


def tool(name: str, parameters: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


def held(choice: Any, *tools: dict[str, Any], **fields: Any) -> Constraint:
    constraint = chat(tools=tools, tool_choice=choice, **fields).to_core().sampling.constraint
    assert constraint is not None
    return constraint


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas, "required": sorted(schemas)}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
