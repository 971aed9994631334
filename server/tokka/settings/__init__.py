"""What an operator can choose; the only reader of the environment and the config file."""

from tokka.settings.fields import EMBEDDED_MODEL, Settings
from tokka.settings.loading import load_settings
from tokka.settings.values import is_loopback, parse_size

__all__ = ["EMBEDDED_MODEL", "Settings", "is_loopback", "load_settings", "parse_size"]
