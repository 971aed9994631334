"""An OpenID Connect issuer, in this process."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://login.example.org/realms/lumi"


AUDIENCE = "tokka"


NOW = 1_800_000_000


# Generators of private keys, by key id.
KINDS: dict[str, Callable[[], Any]] = {
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "other-rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


KID_OF = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "rsa"),
    "ES256": "p256",
    "ES384": "p384",
    "ES512": "p521",
    "EdDSA": "ed25519",
}


@cache
def private(kid: str) -> Any:
    return KINDS[kid]()


def jwk(name: str, /, *, secret: bool = False, **more: Any) -> dict[str, Any]:
    """Return the key as its issuer publishes it. The value None removes a field."""
    kinds = {"rsa": "RS256", "other-rsa": "RS256", "ed25519": "EdDSA"}
    algorithm = jwt.get_algorithm_by_name(kinds.get(name, "ES256"))
    key = private(name) if secret else private(name).public_key()
    fields = {**algorithm.to_jwk(key, as_dict=True), "kid": name, "use": "sig", **more}
    fields.pop("key_ops", None)
    return {field: value for field, value in fields.items() if value is not None}


def claims(**more: Any) -> dict[str, Any]:
    """Return valid claims with these changes. The value None removes a claim."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "exp": NOW + 300, "iat": NOW, "sub": "alice", "scope": "openid inference"}
    return {name: value for name, value in {**good, **more}.items() if value is not None}


def signed(
    content: dict[str, Any] | None = None, algorithm: str = "RS256", by: str | None = None, **header: Any
) -> str:
    kid = by or KID_OF[algorithm]
    fields = {name: value for name, value in {"kid": kid, **header}.items() if value is not None}
    return jwt.encode(claims() if content is None else content, private(kid), algorithm, headers=fields)


class Issuer:
    """A real issuer on loopback. The test sets its keys and replies, and starts and stops it."""

    def __init__(self, *kids: str, certificate: Path | None = None) -> None:
        """Start the issuer. `certificate`: a file with certificate and private key, to serve https."""
        self.keys = [jwk(kid) for kid in kids]
        # Replies that replace the usual ones, by path.
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.discovery: dict[str, Any] = {}
        self.asked: list[str] = []
        self.asked_s: list[float] = []
        self.ending = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._certificate = certificate
        self._scheme = "https" if certificate else "http"
        self.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._port}/realms/lumi"

    def token(self, by: str = "rsa", *, algorithm: str = "RS256", kid: str | None = None, **changes: Any) -> str:
        """Return a token that is valid now."""
        now = int(time.time())
        content = claims(**{"iss": self.url, "iat": now, "exp": now + 300, **changes})
        return signed(content, algorithm, by, kid=kid or by)

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._server.daemon_threads = True
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.ending.set()
        self.stop()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked_s.append(time.monotonic())
                issuer.asked.append(self.path)
                # In some tests, the client leaves before the reply.
                with contextlib.suppress(OSError):
                    issuer.answers.get(self.path, issuer.answer)(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        documents = {
            DISCOVERY: {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.discovery},
            KEYS: {"keys": self.keys},
        }
        answer(200, json.dumps(documents[request.path]).encode())(request)


DISCOVERY, KEYS = "/realms/lumi/.well-known/openid-configuration", "/realms/lumi/keys"


def answer(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return send


def silent(issuer: Issuer) -> Callable[[BaseHTTPRequestHandler], None]:
    def wait(_: BaseHTTPRequestHandler) -> None:
        issuer.ending.wait(60)

    return wait
