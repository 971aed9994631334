"""Version, changelog and tag name the same release."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tokka import __version__

ROOT = Path(__file__).parents[2]
HEADINGS = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_changelog_lists_dated_versions_newest_first() -> None:
    unreleased, *released = HEADINGS
    assert unreleased == "Unreleased"
    versions = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) \(\d{4}-\d{2}-\d{2}\)", heading) for heading in released]
    numbers = [tuple(map(int, version.groups())) for version in versions if version]
    assert len(numbers) == len(released)
    assert numbers == sorted(set(numbers), reverse=True)


def test_version_is_the_newest_in_the_changelog() -> None:
    assert HEADINGS[1].partition(" ")[0] == __version__


def test_tag_of_this_commit_is_the_version() -> None:
    # An unpacked archive has no tags.
    done = subprocess.run(
        ["git", "tag", "--points-at", "HEAD", "v*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() in ([], [f"v{__version__}"])
