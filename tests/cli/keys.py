"""Commands on a state folder, run in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from tokka.cli import app


def tokka(folder: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--state-dir", str(folder)])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result
