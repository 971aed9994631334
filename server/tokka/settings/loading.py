"""Load the settings. Flags take precedence over the environment, then the config file, then the defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from tokka.errors import ConfigurationError, unreadable
from tokka.settings.secrets import forget_secrets
from tokka.settings.settings import Settings

PREFIX = "TOKKA_"
# Variable with the path of the config file. It is not a setting.
CONFIG_VARIABLE = "TOKKA_CONFIG"


def load_settings(flags: dict[str, Any], config: Path | None = None) -> Settings:
    """Merge flags, environment and config file. Remove the secrets from the environment.

    Raises ConfigurationError with the option and its source if a value is invalid.
    """
    config = config or (Path(path) if (path := os.environ.get(CONFIG_VARIABLE)) else None)
    file = _read_file(config) if config else {}
    try:
        # Pydantic ranks the environment below flags. The file ranks below both, so it is the last source.
        return _with_defaults(file)(**flags)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, flags, config)) from None
    finally:
        forget_secrets()


def unknown_variables() -> list[str]:
    """Return the `TOKKA_` environment variables that do not name a setting."""
    known = {CONFIG_VARIABLE, *map(variable_of, Settings.model_fields)}
    # Pydantic ignores the case of variable names.
    return sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)


def variable_of(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return f"{PREFIX}{name.upper()}"


def _with_defaults(file: dict[str, Any]) -> type[Settings]:
    if not file:
        return Settings

    class FileSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            *_: Any,
            **__: Any,
        ) -> tuple[Any, ...]:
            return (init_settings, env_settings, lambda: file)

    return FileSettings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise unreadable(f"cannot read the config file {path}: {error.strerror}", error) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # The error's own text quotes the file, which may hold keys.
        raise ConfigurationError(f"the config file {path} is not YAML{_place_of(error)}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"the config file {path} must hold `option: value` lines")
    file = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name in file:
        if name not in Settings.model_fields:
            raise ConfigurationError(f"the config file {path} has an unknown option {name!r}")
    return file


def _place_of(error: Exception) -> str:
    """Return the position of a YAML error as text, empty if the error has none."""
    mark = getattr(error, "problem_mark", None)
    return f": look at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _explain(error: ValidationError, flags: dict[str, Any], config: Path | None) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return reason
    name = str(first["loc"][0])
    if name in flags:
        source = f"--{name.replace('_', '-')}"
    elif (variable := variable_of(name)) in os.environ:
        source = variable
    else:
        source = f"{name} in {config}"
    return f"{source}: {reason}"
