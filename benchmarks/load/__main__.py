"""The experiments behind docs/benchmarks/, one function each: `python -m benchmarks.load EXPERIMENT ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from benchmarks.load import alone, compare, fleet, idle, prompts, versus

# Each takes the rest of the command line; its --help lists the options.
EXPERIMENTS: dict[str, Callable[[Sequence[str]], None]] = {
    "goodput": compare.main,
    "defaults": versus.defaults,
    "front": versus.front,
    "prompts": prompts.prompts,
    "alone": alone.alone,
    "streams": idle.streams,
    "fleet": fleet.fleet,
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in EXPERIMENTS:
        print(f"usage: scripts/bench {'|'.join(EXPERIMENTS)} ...", file=sys.stderr)
        return 2
    EXPERIMENTS[sys.argv[1]](sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
