"""Which processes belong to a worker, on tables made by hand."""

from __future__ import annotations

import os
from pathlib import Path

from tokka.fleet.launchers.process_tree import Entry, ProcessTable, read_entry

LEADER = Entry(pid=100, parent=1, session=100, start_ticks=5000, is_zombie=False)


def entry(pid: int, parent: int, session: int, start_ticks: int = 6000) -> Entry:
    return Entry(pid, parent, session, start_ticks, is_zombie=False)


def tree(*entries: Entry, known: tuple[Entry, ...] = ()) -> list[int]:
    return sorted(found.pid for found in ProcessTable(entries).tree(LEADER, known))


def test_descendants_belong_to_the_tree_in_any_session() -> None:
    others = entry(50, 1, 50), entry(51, 50, 50)
    assert tree(LEADER, entry(101, 100, 100), entry(102, 101, 102), entry(103, 102, 102), *others) == [
        100,
        101,
        102,
        103,
    ]


def test_orphans_in_the_session_belong_to_the_tree() -> None:
    assert tree(LEADER, entry(101, 1, 100), entry(102, 101, 102)) == [100, 101, 102]
    assert tree(entry(101, 1, 100)) == [101]


def test_known_processes_belong_to_the_tree() -> None:
    orphan = entry(101, 1, 101)
    assert tree(orphan) == []
    assert tree(orphan, known=(orphan,)) == [101]
    # Another process with its pid.
    assert tree(orphan, known=(entry(101, 1, 101, start_ticks=5999),)) == []


def test_session_of_a_reused_pid_is_not_the_workers() -> None:
    assert tree(entry(100, 1, 100), entry(101, 100, 100)) == []


def test_name_with_brackets_and_spaces_is_read(tmp_path: Path) -> None:
    # The kernel writes the name in brackets before the other fields.
    name = Path("/proc/self/comm")
    before = name.read_text()
    try:
        name.write_text(") R 1 (")
        found = read_entry(os.getpid())
    finally:
        name.write_text(before)
    assert found is not None
    assert (found.pid, found.parent, found.session) == (os.getpid(), os.getppid(), os.getsid(0))


def test_ended_process_has_no_entry() -> None:
    assert read_entry(1 << 22) is None
