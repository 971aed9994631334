"""The handshake: a worker says hello, the gateway welcomes or refuses it.

Peers of different versions must understand these three messages. So they are maps, of which a reader ignores the
entries that it does not know, and no entry may be removed.
"""

from __future__ import annotations

import hmac
from typing import Any

import msgspec

from tokka import __version__
from tokka.protocol.worker.frames import BrokenFrame

# Changes with every change of messages.py that the other side could misread.
PROTOCOL = 2


class Hello(msgspec.Struct, frozen=True):
    """A worker's first message. `model`: the name it serves; `worker`: an id that outlives its connections."""

    token: str
    worker: str
    model: str
    node: str
    pid: int
    protocol: int = PROTOCOL
    version: str = __version__


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The gateway's answer to a worker that may join."""

    version: str = __version__


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """The gateway's answer to a worker that must not join. The connection then ends."""

    reason: str


_encode = msgspec.msgpack.Encoder().encode
_hello: msgspec.msgpack.Decoder[Hello] = msgspec.msgpack.Decoder(Hello)
_reply: msgspec.msgpack.Decoder[Welcome | Refusal] = msgspec.msgpack.Decoder(Welcome | Refusal)


def payload_of(message: Hello | Welcome | Refusal) -> bytes:
    return _encode(message)


def hello_of(payload: Any) -> Hello:
    """Raises BrokenFrame."""
    try:
        return _hello.decode(payload)
    except msgspec.MsgspecError as error:
        raise BrokenFrame(f"not a hello: {error}") from None


def reply_of(payload: Any) -> Welcome | Refusal:
    """Raises BrokenFrame."""
    try:
        return _reply.decode(payload)
    except msgspec.MsgspecError as error:
        raise BrokenFrame(f"not a reply to hello: {error}") from None


def refusal_of(hello: Hello, token: str) -> str | None:
    """Return why a worker must not join, None if it may. A worker without the token learns nothing else."""
    if not hmac.compare_digest(hello.token.encode(), token.encode()):
        return "the token is not the gateway's; give the worker the gateway's token file"
    if hello.protocol != PROTOCOL:
        return (
            f"the worker is Tokka {hello.version} (protocol {hello.protocol}), the gateway is Tokka {__version__}"
            f" (protocol {PROTOCOL}); install the same version"
        )
    return None
