"""The operator's settings. Only this package reads the environment and the config file."""

from tokka.settings.fields import EMBEDDED_EMBEDDING_MODEL, EMBEDDED_MODEL, EngineSettings
from tokka.settings.loading import load_settings, unknown_variables, variable_of
from tokka.settings.secrets import exposed_files, read_database_url, visible_options, with_secrets
from tokka.settings.settings import Settings
from tokka.settings.values import expanded, parse_size
from tokka.settings.worker import WORKER_SETTINGS, checked_settings, environment_text, environment_with

__all__ = [
    "EMBEDDED_EMBEDDING_MODEL",
    "EMBEDDED_MODEL",
    "WORKER_SETTINGS",
    "EngineSettings",
    "Settings",
    "checked_settings",
    "environment_text",
    "environment_with",
    "expanded",
    "exposed_files",
    "load_settings",
    "parse_size",
    "read_database_url",
    "unknown_variables",
    "variable_of",
    "visible_options",
    "with_secrets",
]
