"""A constraint that need not hold in full is loosened until it can be compiled."""

from __future__ import annotations

from dataclasses import replace

import structlog

from tokka.core import Constraint
from tokka.engine.vllm.grammars import Grammars
from tokka.errors import InvalidRequest

log = structlog.get_logger("tokka.engine")


async def grammar_of(grammars: Grammars, constraint: Constraint) -> str:
    """Return the grammar of the tightest of a constraint's texts that can be compiled. Raises as `grammar` does."""
    *tighter, last = constraint.text, *constraint.looser
    for text in tighter:
        try:
            return await grammars.grammar(replace(constraint, text=text))
        except InvalidRequest as refused:
            log.debug("constraint_loosened", reason=refused.message)
    return await grammars.grammar(replace(constraint, text=last))
