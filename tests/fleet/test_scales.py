"""The numbers of replicas that an operator has fixed: they are kept, and a damaged file does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokka.fleet.salt import read_salt
from tokka.fleet.scales import read_scales, write_scales


def test_numbers_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    assert read_scales(tmp_path) == {}
    write_scales(tmp_path, {"poro": 2, "org/name": 0})
    assert read_scales(tmp_path) == {"poro": 2, "org/name": 0}
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "[1]", '{"poro": -1}', '{"poro": "2"}', "\x00"])
def test_damaged_file_counts_as_empty(tmp_path: Path, content: str) -> None:
    write_scales(tmp_path, {})
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert read_scales(tmp_path) == {}


def test_salt_is_the_same_for_each_gateway(tmp_path: Path) -> None:
    salt = read_salt(tmp_path / "state")
    assert read_salt(tmp_path / "state") == salt
    assert read_salt(tmp_path / "other") != salt
    (tmp_path / "state" / "prefix-salt").write_text("torn")
    assert len(read_salt(tmp_path / "state")) == len(salt)
