"""Constraints of each kind, and the service that compiles them."""

from __future__ import annotations

import psutil

from tests.program import runs
from tokka.core import Constraint
from tokka.engine.supervision.processes import COMPILER_NAME

SLOW = Constraint("grammar", "start: " + "(a|b)? " * 8000 + '\na: "x" b\nb: "y" | "x"', "slow")


GOOD = Constraint("regex", "[ab]+", "good")


def compiler() -> psutil.Process | None:
    found = [child for child in psutil.Process().children() if child.name() == COMPILER_NAME and runs(child)]
    return found[0] if found else None


def slow(number: int) -> Constraint:
    """Return one of many constraints that each use up the time limit of a compilation."""
    return Constraint("grammar", f'{SLOW.text}\nc{number}: "x"', "slow")
