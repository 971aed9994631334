"""The table in docs/clients.md names exactly the locked and tested versions."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.clients.checks import CLIENTS, DOCUMENT, NODE, ROOT, Client

ROWS = {
    cells[0]: cells[1]
    for cells in re.findall(r"^\| (.+?) \| (\d\S*) \| .+ \| works.* \|$", DOCUMENT.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.check)
def test_the_table_has_the_locked_version(client: Client) -> None:
    assert ROWS[client.name] == client.version


def test_the_table_has_no_other_rows() -> None:
    assert ROWS.keys() == {client.name for client in CLIENTS}
    examples = json.loads((ROOT / "clients/node/package.json").read_text())["dependencies"]
    assert ROWS["openai (Node.js)"] == examples["openai"]


@pytest.mark.parametrize("group", ["clients-openai2", "clients-openai3"])
def test_lock_files_have_the_pinned_versions(group: str) -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]
    locked = (ROOT / "requirements" / f"{group}.txt").read_text().splitlines()
    locked = [line.partition(" ")[0] for line in locked]
    exact = {re.sub(r"\[.*?\]", "", one) for one in asked if "==" in one}
    assert exact <= set(locked)


def test_the_lock_file_for_node_names_no_registry() -> None:
    lock = json.loads((NODE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all("resolved" not in package and package["integrity"] for package in packages.values())
    wanted = lock["packages"][""]["dependencies"]
    assert wanted == {name: packages[f"node_modules/{name}"]["version"] for name in wanted}
