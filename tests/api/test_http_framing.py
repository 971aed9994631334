"""Framing finds the end of each request, however the bytes of the connection are split."""

from __future__ import annotations

import httptools
from hypothesis import given
from hypothesis import strategies as st

from tokka.api.http_framing import Framing

BODY = st.lists(
    st.sampled_from([b"\r\n\r\n", b"\r\n", b"\n", b"\r", b"0", b"x", b"GET / HTTP/1.1\r\n\r\n"]), max_size=6
)


def plain(pieces: list[bytes]) -> bytes:
    body = b"".join(pieces)
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunked(pieces: list[bytes]) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\nT: x\r\n\r\n" % chunks


REQUESTS = st.lists(
    st.one_of(BODY.map(plain), BODY.map(chunked), st.just(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")), max_size=5
)


class Reader:
    """A parser that is fed slice by slice. It fails if one slice touches two requests."""

    def __init__(self) -> None:
        self.framing = Framing()
        self.parser = httptools.HttpRequestParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self.ended = 0
        self.ended_in_slice = 0

    def read(self, data: bytes) -> None:
        begin = 0
        while begin < len(data):
            end = self.framing.slice_end(data, begin)
            assert begin < end <= len(data)
            self.ended_in_slice = 0
            self.parser.feed_data(data[begin:end])
            begin = end

    def on_message_begin(self) -> None:
        assert self.ended_in_slice == 0, "a slice reaches into the next request"
        self.headers = []
        self.bodies.append(b"")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.framing.expect_body(self.headers)

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.ended += 1
        self.ended_in_slice += 1


@given(REQUESTS, st.lists(st.integers(1, 40), max_size=30))
def test_no_slice_reaches_into_the_next_request(requests: list[bytes], sizes: list[int]) -> None:
    data = b"".join(requests)
    reader = Reader()
    while data:
        size = sizes.pop() if sizes else len(data)
        reader.read(data[:size])
        data = data[size:]
    assert reader.ended == len(requests)
    whole = Reader()
    for request in requests:
        whole.read(request)
    assert reader.bodies == whole.bodies


def test_every_cut_of_two_requests_keeps_them_apart() -> None:
    data = chunked([b"\r\n\r\n", b"x"]) + plain([b"\r\n\r\n"]) + chunked([])
    for cut in range(1, len(data)):
        reader = Reader()
        reader.read(data[:cut])
        reader.read(data[cut:])
        assert reader.ended == 3, f"cut at {cut}"
