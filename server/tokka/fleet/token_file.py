"""The token file: the secret that lets a worker join, and the gateway's certificate if connections use TLS."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tokka.errors import ConfigurationError, unreadable
from tokka.fleet.private_file import write_private

TOKEN_NAME = "join-token"  # noqa: S105 - the file's name
KEY_NAME = "join-key.pem"
# Maximum bytes of a token file. A wrong path can name a file of any size.
_MAX_BYTES = 64 << 10
# Nobody renews the certificate. Workers know it by the token file alone, so its age proves nothing.
_VALID_DAYS = 36500
_BEGIN = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """The contents of a token file. `certificate`: the gateway's, as PEM; None for plain connections on loopback."""

    token: str = field(repr=False)
    certificate: str | None

    def client_context(self) -> ssl.SSLContext | None:
        """Return a context that trusts only the gateway's certificate, whatever its host is called."""
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.load_verify_locations(cadata=self.certificate)
        return context


def read_token_file(path: Path) -> JoinToken:
    """Raises StartupError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise unreadable(f"--join-token-file: cannot read {path}: {error.strerror}", error) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--join-token-file: {path} is not a text file") from None
    token, _, rest = text.strip().partition("\n")
    is_token = len(content) <= _MAX_BYTES and token and token.isascii() and " " not in token and _BEGIN not in token
    if not is_token or (rest and _BEGIN not in rest):
        raise ConfigurationError(f"--join-token-file: {path} is not a token file; copy the gateway's {TOKEN_NAME}")
    return JoinToken(token, rest or None)


def ensure_token_file(folder: Path, *, tls: bool) -> JoinToken:
    """Return the gateway's token, and write its files first if they are missing. Raises StartupError.

    A file with a certificate keeps it without `tls`, since workers have copies. The files are for the owner alone.
    """
    path, key = folder / TOKEN_NAME, folder / KEY_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = read_token_file(path) if path.exists() else None
        if found is not None and (found.certificate is None or key.exists()) and (not tls or found.certificate):
            return found
        certificate = None
        if tls:
            certificate, private = _new_certificate()
            write_private(key, private)
        token = found.token if found is not None else secrets.token_urlsafe(32)
        write_private(path, f"{token}\n{certificate or ''}")
        return read_token_file(path)
    except OSError as error:
        raise unreadable(f"cannot write {TOKEN_NAME} in {folder}: {error.strerror}", error) from None


def server_context(folder: Path, token: JoinToken) -> ssl.SSLContext | None:
    """Return the gateway's context, None if its token file has no certificate. Raises StartupError."""
    if token.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(folder / TOKEN_NAME, folder / KEY_NAME)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{folder / KEY_NAME} does not fit the certificate in {TOKEN_NAME}: {error.strerror}; remove both, and"
            " give the workers the new token file"
        ) from None
    return context


def _new_certificate() -> tuple[str, str]:
    """Return a certificate that signs itself, and its private key, as PEM."""
    # Imported late: it takes 0.1 s, and plain connections need none.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokka gateway")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A worker's clock may be behind.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
