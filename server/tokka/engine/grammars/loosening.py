"""Loosens a constraint step by step until it compiles, if it need not hold in full."""

from __future__ import annotations

from dataclasses import replace

import structlog

from tokka.core import Constraint
from tokka.engine.grammars.service import GrammarService
from tokka.errors import InvalidRequest
from tokka.protocol.constraint import loosened_texts

log = structlog.get_logger("tokka.engine")


async def compile_loosening(
    grammars: GrammarService, constraint: Constraint, tenant: str = "", choices: int = 1
) -> str:
    """Return the grammar of a constraint's strictest text that compiles. Raises as `GrammarService.grammar` does."""
    try:
        return await grammars.grammar(constraint, tenant, choices)
    except InvalidRequest as error:
        # vllm/design 2.3.8
        if constraint.calls is None:
            raise
        refused, tried = error, constraint.text
    for text in loosened_texts(constraint.calls):
        if text == tried:
            continue
        log.debug("constraint_loosened", reason=refused.message)
        try:
            return await grammars.grammar(replace(constraint, text=text), tenant, choices)
        except InvalidRequest as error:
            refused, tried = error, text
    raise refused
