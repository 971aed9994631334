"""How soon a dead engine must be noticed, and its requests ended."""

from __future__ import annotations

# Maximum seconds on a busy machine; a quiet one takes tenths of a second (docs/reliability.md). vLLM itself takes ten
# seconds to notice that a worker is gone.
ENDED_WITHIN_S = 9.0


UNREADY_WITHIN_S = 8.0
