"""The settings of `tokka worker`: their names, their check without a worker, and the environment that carries them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from tokka.settings.fields import EngineSettings
from tokka.settings.loading import PREFIX, variable_of
from tokka.settings.settings import Settings

WORKER_SETTINGS = (
    *EngineSettings.model_fields,
    *("max_completion_tokens", "drain_timeout", "stall_timeout", "max_quick_deaths"),
    *("cache_dir", "log_format", "log_level"),
)


class _GivenSettings(Settings):
    """Settings of another process: the environment of this one does not count."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def checked_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the given settings in JSON's types, without nulls; and the reason for each invalid one, by its name."""
    try:
        settings = _GivenSettings(**values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        return {}, {str(one["loc"][0]): one["msg"].removeprefix("Value error, ") for one in reversed(problems)}
    return settings.model_dump(mode="json", include=set(values), exclude_none=True), {}


def environment_with(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return this process's environment, with these settings in place of its own."""
    # Pydantic ignores the case of variable names.
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return inherited | {variable_of(name): environment_text(value) for name, value in settings.items()}


def environment_text(value: Any) -> str:
    """Return a setting's value as text of an environment variable."""
    match value:
        case bool():
            return str(value).lower()
        case list():
            return ",".join(value)
    return str(value)
