"""Finds processes by the environment of their start.

Not in tests/program.py: tests that import from there run apart from the measurement of coverage.
"""

from __future__ import annotations

import psutil


def processes_with(environment: dict[str, str]) -> list[psutil.Process]:
    """Return the running processes that were started with these variables, regardless of their parent."""
    found = []
    for process in psutil.process_iter():
        try:
            if environment.items() <= process.environ().items() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
