"""Addresses where workers join a gateway: HOST:PORT."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.errors import ConfigurationError
from tokka.loopback import is_loopback


@dataclass(frozen=True, slots=True)
class Address:
    """Host without brackets, and port."""

    host: str
    port: int

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(text: str) -> Address:
    """Return the address `HOST:PORT` or `[IPv6]:PORT`. Raises ConfigurationError."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = host != bare
    if not bare or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in bare) != is_bracketed:
        raise ConfigurationError(f"--join {text}: it must be HOST:PORT, for example 127.0.0.1:7400 or [::1]:7400")
    return Address(bare, int(port))
