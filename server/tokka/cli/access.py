"""Access check at the start: refuses settings that contradict the keys, and logs the access rule."""

from __future__ import annotations

import structlog

from tokka.accounts.keys import KeyRing
from tokka.errors import ConfigurationError
from tokka.settings import Settings

log = structlog.get_logger("tokka.serve")

# Settings that each make the server require keys.
_KEY_SETTINGS = ("api_key", "admin_key", "metrics_key", "oidc_issuer")


def check_access(settings: Settings, ring: KeyRing, now_s: float) -> None:
    """Log the access rule.

    Raises ConfigurationError if --no-auth is set although there are keys, or if the address is open without keys.
    """
    unusable = ring.unusable(now_s)
    if ring.is_protected:
        if settings.no_auth:
            raise ConfigurationError(_contradiction(settings, ring, now_s))
        log.info("access", rule=ring.rule(now_s), **_of(unusable))
        if not ring.may_infer(now_s):
            log.warning("no_key_for_inference", remedy="create one with `tokka keys create --name NAME`")
        return
    if settings.needs_keys:
        ended = f" ({unusable} in the database are revoked or expired)" if unusable else ""
        raise ConfigurationError(
            f"--host: serving on {settings.host} without any active key{ended} would open the model to everyone who "
            "can reach it; create a key with `tokka keys create`, set --api-key-file, or allow this with --no-auth"
        )
    log.info("access", rule=_open_rule(settings), **_of(unusable))


def _open_rule(settings: Settings) -> str:
    if settings.no_auth:
        return "open to everyone (--no-auth)"
    return "open on the unix socket" if settings.uds else "open on loopback"


def _contradiction(settings: Settings, ring: KeyRing, now_s: float) -> str:
    given = [f"--{name.replace('_', '-')}" for name in _KEY_SETTINGS if getattr(settings, name)]
    stored = ring.stored(now_s)
    sources = [*given, *([f"{stored} active in the database, see `tokka keys list`"] if stored else [])]
    return (
        f"--no-auth serves everyone without a key, but there are keys ({'; '.join(sources)}); leave out --no-auth, or "
        "remove the keys (stored ones with `tokka keys revoke`)"
    )


def _of(unusable: int) -> dict[str, int]:
    return {"revoked_or_expired": unusable} if unusable else {}
