"""Print the mutants of a module that its tests do not detect: `mutate.py MODULE TESTS...`.

cosmic-ray makes and tests the mutants. This adds two operators: removed statements, and conditions that are always true
or false. Most mechanisms are lost in these ways. The exit code is 1 if a mutant survives.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cosmic_ray.plugins
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.operators.operator import Operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome
from parso.python.tree import Keyword, Name

ROOT = Path(__file__).parent.parent
# Time limit for the tests of one mutant: this many times the unmutated run, and at least this many seconds.
PATIENCE, LEAST_S = 5, 20
# cosmic-ray's operators that change the effect of code, not only the way it fails.
KEPT = re.compile(
    r"tokka/.*|core/(ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Add)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_Delete_\w+|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak|NumberReplacer|RemoveDecorator|ZeroIterationForLoop)"
)
# Lines with meaningless mutants: options of dataclasses, values of constants, signatures with a bare `*`.
SKIPPED = re.compile(r"\s*@dataclass|\s*@property|_?[A-Z_]+(, _?[A-Z_]+)* = |.*\(self, \*,")


class RemoveStatement(Operator):
    """Replace a statement of a function by `pass`."""

    SPARED: ClassVar = ("import_name", "import_from", "string", "strings", "global_stmt", "nonlocal_stmt")

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type != "simple_stmt" or node.children[0].type in self.SPARED or not _is_in_function(node):
            return
        if not node.get_code(include_prefix=False).startswith(("pass", "assert ", "log.", "continue", "break")):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        node.children[0] = Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class FixCondition(Operator):
    """Make a condition always true, and always false. It is still computed, since it may bind a name."""

    ENDS: ClassVar = ("or True", "and False")

    def _conditions(self, node: Any) -> list[int]:
        if node.type in ("if_stmt", "while_stmt"):
            words = [getattr(child, "value", "") for child in node.children]
            return [at + 1 for at, word in enumerate(words) if word in ("if", "elif", "while")]
        return {"ternary": [2], "comp_if": [1], "sync_comp_if": [1]}.get(node.type, [])

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        for at in self._conditions(node):
            for _ in self.ENDS:
                yield node.children[at].start_pos, node.children[at].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        which, end = divmod(index, len(self.ENDS))
        at = self._conditions(node)[which]
        old = node.children[at]
        code = f"(({old.get_code(include_prefix=False)}) {self.ENDS[end]})"
        node.children[at] = Name(code, old.start_pos, old.get_first_leaf().prefix or " ")
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class Operators(dict[str, type[Operator]]):
    """Provide the operators above as `tokka/NAME`."""

    def __init__(self) -> None:
        super().__init__({one.__name__: one for one in (RemoveStatement, FixCondition)})


def _is_in_function(node: Any) -> bool:
    while node is not None and node.type != "funcdef":
        node = node.parent
    return node is not None


def mutants_of(module: Path) -> list[MutationSpec]:
    """Return the module's mutants that are worth testing."""
    lines = module.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/mutants") as work:
        init([module], work, {})
        found = [mutation for item in work.work_items for mutation in item.mutations]
    return [
        mutation
        for mutation in found
        if KEPT.fullmatch(mutation.operator_name) and not SKIPPED.match(lines[mutation.start_pos[0] - 1])
    ]


def seconds(command: str) -> float:
    """Return the seconds that the tests take without a mutant. Raises CalledProcessError if they fail."""
    before = os.times().elapsed
    subprocess.run(shlex.split(command), check=True, stdout=sys.stderr)
    return os.times().elapsed - before


def main() -> int:
    module, *tests = sys.argv[1:]
    cosmic_ray.plugins.OPERATOR_PROVIDERS["tokka"] = Operators()
    with tempfile.TemporaryDirectory() as copy:
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), copy], check=True)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = f"{copy}/server"
        command = shlex.join([str(ROOT / ".venv/bin/python"), "-m", "pytest", "-x", "-q", "-p", "no:randomly", *tests])
        timeout_s = max(LEAST_S, PATIENCE * seconds(command))
        mutants = mutants_of(Path(module))
        survivors = 0
        for mutant in sorted(mutants, key=lambda mutant: mutant.start_pos):
            result = mutate_and_test([mutant], command, timeout_s)
            if result.test_outcome is not TestOutcome.KILLED:
                survivors += 1
                changed = [line for line in (result.diff or "").splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
                print(f"line {mutant.start_pos[0]}:", result.test_outcome.value, *changed, sep="\n  ", flush=True)
        print(f"{module}: {len(mutants)} mutants, {survivors} not detected")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
