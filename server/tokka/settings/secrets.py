"""Secrets: reads keys and passwords from files, and removes them from the environment."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokka.errors import ConfigurationError, unreadable
from tokka.settings.settings import Settings
from tokka.settings.values import is_key

_KEYS = ("api_key", "admin_key", "metrics_key")
SECRETS = (*_KEYS, "database_url")
# Maximum bytes of a secrets file, enough for ten thousand keys. A wrong path can name a file of any size.
_MAX_FILE_BYTES = 1 << 20
# Matches a URL, or a key from `tokka keys` or `openssl rand`: the operator passed a secret instead of a file.
_SECRET = re.compile(r"[A-Za-z][\w+]+:/.*|tk-[^/]*|[\w-]{32,}")
_COMMENT = re.compile(r"(?:^|\s)#.*")


def forget_secrets() -> None:
    """Remove the secrets from this process's environment, so that child processes do not inherit them."""
    variables = {f"TOKKA_{name.upper()}" for name in SECRETS}
    # Pydantic ignores the case of variable names.
    for variable in [name for name in os.environ if name.upper() in variables]:
        del os.environ[variable]


def with_secrets(settings: Settings) -> Settings:
    """Return the settings with the contents of their secrets files. Raises StartupError if a file is unusable."""
    # An updated field counts as set by the operator, so update only fields whose file was given.
    values: dict[str, Any] = {
        name: [*getattr(settings, name), *_keys_of(path, option_of(f"{name}_file"))]
        for name in _KEYS
        if (path := getattr(settings, f"{name}_file"))
    }
    if settings.database_url_file:
        values["database_url"] = read_database_url(settings)
    return settings.model_copy(update=values)


def read_database_url(settings: Settings) -> str | None:
    """Return the database URL from its setting or its file.

    Raises ConfigurationError if both are given, StartupError if the file is unusable.
    """
    path = settings.database_url_file
    if path is None:
        return settings.database_url
    if settings.database_url is not None:
        raise ConfigurationError("--database-url and --database-url-file are both given; give one of them")
    lines = [text for _, text in _lines_of(path, "--database-url-file")]
    if len(lines) != 1:
        raise ConfigurationError(f"--database-url-file: {path} has {len(lines)} lines; it must have one, the URL")
    return lines[0]


def exposed_files(settings: Settings) -> list[str]:
    """Return the options with a secrets file that every user of the machine can read or change."""
    return [
        option_of(f"{name}_file")
        for name in SECRETS
        if (path := getattr(settings, f"{name}_file")) and _is_exposed(path)
    ]


def visible_options(flags: Mapping[str, Any]) -> list[str]:
    """Return the command-line options that hold a secret. Every user can see them in the process list."""
    return [option_of(name) for name in SECRETS if name in flags and (name in _KEYS or "@" in flags[name])]


def option_of(name: str) -> str:
    """Return the command-line option of a setting."""
    return f"--{name.replace('_', '-')}"


def _keys_of(path: Path, option: str) -> list[str]:
    lines = _lines_of(path, option)
    if not lines:
        # If an empty file counted as "no keys", the server would be open to everyone.
        raise ConfigurationError(f"{option}: {path} holds no key; write one key per line")
    for number, text in lines:
        if not is_key(text):
            raise ConfigurationError(
                f"{option}: line {number} of {path} is not a key; a key must be printable ASCII without spaces"
            )
    return [text for _, text in lines]


def _lines_of(path: Path, option: str) -> list[tuple[int, str]]:
    """Return a file's lines with their numbers, without comments and empty lines. Raises StartupError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigurationError(f"{option}: {path} is larger than {_MAX_FILE_BYTES} bytes; name the right file")
        text = content.decode("utf-8-sig")
    except OSError as error:
        if _SECRET.fullmatch(str(path)):
            plain = option.removesuffix("-file")
            raise ConfigurationError(f"{option}: it must name a file; give the secret itself as {plain}") from None
        raise unreadable(f"{option}: cannot read {path}: {error.strerror}", error) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{option}: {path} is not a text file") from None
    bare = [(number, _COMMENT.sub("", line).strip()) for number, line in enumerate(text.split("\n"), start=1)]
    return [(number, line) for number, line in bare if line]


def _is_exposed(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False
