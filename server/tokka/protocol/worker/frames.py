"""Frames on the byte stream between a gateway and a worker: four bytes of length, big-endian, then the payload."""

from __future__ import annotations

# Maximum bytes of a frame before the handshake is complete, when the peer is a stranger.
HANDSHAKE_BYTES = 64 << 10
# Maximum bytes of any other frame. The largest ones are requests: twice the default maximum of an HTTP body.
MAX_BYTES = 64 << 20
_HEADER = 4


class BrokenFrame(Exception):
    """The peer sent bytes that are not a valid frame. Only closing the connection helps."""


class FrameReader:
    """Cuts received bytes into payloads. `limit`: maximum bytes of a payload, checked before any of it is kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytearray]:
        """Add received bytes; return the payloads that are now complete. Raises BrokenFrame."""
        buffer = self._buffer
        buffer += data
        payloads = []
        while len(buffer) >= _HEADER:
            size = int.from_bytes(buffer[:_HEADER], "big")
            if size > self.limit:
                raise BrokenFrame(f"a frame of {size} bytes; the limit is {self.limit}")
            end = _HEADER + size
            if len(buffer) < end:
                break
            payloads.append(buffer[_HEADER:end])
            del buffer[:end]
        return payloads


def frame_of(payload: bytes) -> bytes:
    """Return the frame of a payload. Raises BrokenFrame if the payload is too long to be read."""
    if len(payload) > MAX_BYTES:
        raise BrokenFrame(f"a frame of {len(payload)} bytes; the limit is {MAX_BYTES}")
    return len(payload).to_bytes(_HEADER, "big") + payload
