"""A setting is one field and its use. A field without a use has no effect, and no other test notices that."""

from __future__ import annotations

import ast
from pathlib import Path

from tokka.settings import EngineSettings, Settings

ROOT = Path(__file__).parents[2] / "server" / "tokka"
# The settings package reads these fields by a composed name.
READ_BY_NAME = {"api_key_file", "admin_key_file", "metrics_key_file"}


def fields_read(*folders: str) -> set[str]:
    """Return the fields that the modules below some folders read from a settings object, as in `settings.port`."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return READ_BY_NAME.union(*map(fields_read_by, paths))


def fields_read_by(path: Path) -> set[str]:
    owners = (
        ("settings", "_settings", "self") if path == ROOT / "settings" / "settings.py" else ("settings", "_settings")
    )
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if last_name(node.value) in owners}


def last_name(node: ast.expr) -> str | None:
    """Return `settings` for both `settings` and `options.settings`."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return None


def test_each_setting_has_a_use() -> None:
    assert Settings.model_fields.keys() - fields_read("") == set()


def test_each_engine_setting_has_a_use_in_the_engine() -> None:
    # The settings package derives the served name from several fields.
    assert EngineSettings.model_fields.keys() - fields_read("engine", "settings") == set()
