"""The one typed settings object: the options, checks of their values, and what follows from several of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from tokka.loopback import is_loopback
from tokka.settings.fields import EMBEDDED_MODEL, Options
from tokka.settings.values import is_key, parse_size, parse_weight

_SIZES = ("max_body_size", "max_header_size", "body_memory", "answer_memory")


class Settings(Options):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)

    @field_validator(
        *("served_model_name", "engine_arg", "cors_origin", "api_key", "admin_key", "metrics_key", "tenant_weight"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        # The value of an engine argument may be JSON with commas of its own.
        commas = r",(?=\s*[\w-]+=)" if info.field_name == "engine_arg" else ","
        return [item.strip() for item in re.split(commas, value) if item.strip()]

    @field_validator("tensor_parallel_size", mode="before")
    @classmethod
    def _is_number_or_auto(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto" and not value.strip().isdigit():
            raise ValueError("write a number of devices, or auto")
        return value

    @field_validator("kv_cache_memory", *_SIZES, mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # A file holds a number of bytes as a number.
        return str(value) if type(value) is int else value

    @field_validator("kv_cache_memory", *_SIZES)
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and parse_size(value) <= 0:
            raise ValueError("a size must be positive")
        return value

    @field_validator("served_model_name")
    @classmethod
    def _is_name(cls, value: list[str]) -> list[str]:
        if any(not name or len(name) > 512 for name in value):
            raise ValueError("a model name has 1 to 512 characters")
        return list(dict.fromkeys(value))

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        prefix = value.rstrip("/")
        if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            raise ValueError("a prefix is a path such as /tokka")
        return prefix

    @field_validator("uds_mode", mode="before")
    @classmethod
    def _is_octal(cls, value: Any) -> Any:
        # YAML reads 0660 as an octal number.
        text = f"{value:04o}" if type(value) is int else str(value).removeprefix("0o")
        if not re.fullmatch(r"0?[67][0-7][0-7]", text):
            raise ValueError("write three octal digits that let the owner read and write, such as 0660")
        return text

    @field_validator("engine_arg")
    @classmethod
    def _is_pair(cls, value: list[str]) -> list[str]:
        for place, item in enumerate(value, start=1):
            if "=" not in item:
                # Without the item: it may be a token for the hub.
                raise ValueError(f"item {place} of {len(value)} is not NAME=VALUE")
        return value

    @field_validator("tenant_weight")
    @classmethod
    def _is_weight(cls, value: list[str]) -> list[str]:
        for item in value:
            parse_weight(item)
        return value

    @field_validator("api_key", "admin_key", "metrics_key")
    @classmethod
    def _is_key(cls, value: list[str]) -> list[str]:
        if not all(map(is_key, value)):
            # The key itself is a secret and stays out of the message.
            raise ValueError("a key is printable ASCII without spaces")
        return value

    @property
    def on_loopback(self) -> bool:
        return self.uds is not None or is_loopback(self.host)

    @property
    def needs_keys(self) -> bool:
        """Whether to serve only if there are keys: else everyone who reaches the address could use the model."""
        return not (self.no_auth or self.on_loopback)

    @property
    def names_database(self) -> bool:
        """Whether somebody has said where to keep keys and usage."""
        return bool({"state_dir", "database_url", "database_url_file"} & self.model_fields_set)

    @property
    def tenant_weights(self) -> dict[str, float]:
        return dict(map(parse_weight, self.tenant_weight))

    def names(self) -> tuple[str, ...]:
        """Return the names requests may use; the first is the one answers would call the model by."""
        if self.served_model_name:
            return tuple(self.served_model_name)
        if self.model is None:
            return (EMBEDDED_MODEL,) if self.engine == "vllm" else ("fake",)
        folder = os.path.expanduser(self.model)
        return (Path(os.path.abspath(folder)).name,) if os.path.isdir(folder) else (self.model,)
