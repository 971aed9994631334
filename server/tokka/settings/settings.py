"""The typed settings object: the options, checks of their values, and properties that combine several options."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from tokka.loopback import is_loopback
from tokka.settings.fields import EMBEDDED_EMBEDDING_MODEL, EMBEDDED_MODEL, EngineSettings, Options
from tokka.settings.values import is_key, parse_size, parse_weight

_SIZES = ("max_body_size", "max_header_size", "body_memory", "answer_memory", "response_storage")


class Settings(Options):
    """All settings of a server, validated. Sources: keyword arguments (flags), then environment variables."""

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
        *("served_model_name", "embedding_model_name", "engine_arg", "embedding_engine_arg", "cors_origin"),
        *("api_key", "admin_key", "metrics_key", "tenant_weight"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        # An engine argument's value may be JSON, which contains commas.
        commas = r",(?=\s*[\w-]+=)" if str(info.field_name).endswith("engine_arg") else ","
        return [item.strip() for item in re.split(commas, value) if item.strip()]

    @field_validator("tensor_parallel_size", mode="before")
    @classmethod
    def _is_number_or_auto(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto" and not value.strip().isdigit():
            raise ValueError("it must be a number of devices, or auto")
        return value

    @field_validator("kv_cache_memory", *_SIZES, mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads a size in bytes as a number.
        return str(value) if type(value) is int else value

    @field_validator("kv_cache_memory", *_SIZES)
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and parse_size(value) <= 0:
            raise ValueError("a size must be positive")
        return value

    @field_validator("served_model_name", "embedding_model_name")
    @classmethod
    def _is_name(cls, value: list[str]) -> list[str]:
        if any(not name or len(name) > 512 for name in value):
            raise ValueError("a model name must have 1 to 512 characters")
        return list(dict.fromkeys(value))

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        prefix = value.rstrip("/")
        if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            raise ValueError("a prefix must be a path like /tokka")
        return prefix

    @field_validator("uds_mode", mode="before")
    @classmethod
    def _is_octal(cls, value: Any) -> Any:
        # YAML reads 0660 as an octal number.
        text = f"{value:04o}" if type(value) is int else str(value).removeprefix("0o")
        if not re.fullmatch(r"0?[67][0-7][0-7]", text):
            raise ValueError("it must be three octal digits that let the owner read and write, for example 0660")
        return text

    @field_validator("engine_arg", "embedding_engine_arg")
    @classmethod
    def _is_pair(cls, value: list[str]) -> list[str]:
        for place, item in enumerate(value, start=1):
            if "=" not in item:
                # The message omits the item, which may be a hub token.
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
            # The message omits the key, which is a secret.
            raise ValueError("a key must be printable ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _has_one_place_for_models(self) -> Self:
        of_engine = [name for name in EngineSettings.model_fields if name in self.model_fields_set]
        if self.fleet is not None and of_engine:
            given = ", ".join("MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in of_engine)
            raise ValueError(
                f"--fleet: remove {given}; in {self.fleet}, each entry of `models` has its `model` and its engine's"
                " `settings`"
            )
        return self

    @property
    def on_loopback(self) -> bool:
        """Tell whether the server listens on loopback or a Unix socket."""
        return self.uds is not None or is_loopback(self.host)

    @property
    def needs_keys(self) -> bool:
        """Tell whether the server must have keys, because other machines can reach its address."""
        return not (self.no_auth or self.on_loopback)

    @property
    def names_database(self) -> bool:
        """Tell whether the operator has named the database of keys and usage."""
        return bool({"state_dir", "database_url", "database_url_file"} & self.model_fields_set)

    @property
    def tenant_weights(self) -> dict[str, float]:
        """Return the weight of each tenant that has one."""
        return dict(map(parse_weight, self.tenant_weight))

    def names(self) -> tuple[str, ...]:
        """Return the names that requests may use. The first one is the model's main name."""
        if self.served_model_name:
            return tuple(self.served_model_name)
        if self.model is None:
            return (EMBEDDED_MODEL,) if self.engine == "vllm" else ("fake",)
        return (_name_of(self.model),)

    def embedding_names(self) -> tuple[str, ...]:
        """Return the names of the embedding model; empty without one."""
        if self.embedding_model == "none":
            return ()
        if self.embedding_model is not None:
            return tuple(self.embedding_model_name) or (_name_of(self.embedding_model),)
        if self.model is not None or self.engine != "vllm":
            return ()
        return tuple(self.embedding_model_name) or (EMBEDDED_EMBEDDING_MODEL,)

    @property
    def loads_embedding_model_late(self) -> bool:
        """Whether the first request for the embedding model loads it."""
        if self.embedding_load is None:
            return self.embedding_model is None
        return self.embedding_load == "first-use"


def _name_of(model: str) -> str:
    folder = os.path.expanduser(model)
    return Path(os.path.abspath(folder)).name if os.path.isdir(folder) else model
