"""The command line: help, version and usage errors."""

from __future__ import annotations

from tests.cli.command import tokka
from tokka import __version__
from tokka.settings import Settings


def test_help_names_the_commands() -> None:
    done = tokka("--help")
    assert done.returncode == 0
    assert "serve" in done.stdout
    assert "chat" in done.stdout


def test_version_is_the_packages() -> None:
    assert tokka("--version").stdout.strip() == __version__


def test_every_setting_is_an_option_of_serve() -> None:
    text = tokka("serve", "--help").stdout
    missing = [name for name in Settings.model_fields if name != "model" and f"--{name.replace('_', '-')}" not in text]
    assert missing == []


def test_wrong_usage_exits_with_2_and_no_traceback() -> None:
    for arguments in (["serve", "--no-such-option"], ["nothing"], ["serve", "--port", "x"]):
        done = tokka(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
