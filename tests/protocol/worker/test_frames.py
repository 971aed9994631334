"""Frames on the byte stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.protocol.worker.frames import MAX_BYTES, BrokenFrame, FrameReader, frame_of


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_frames_cut_anywhere_become_their_payloads(payloads: list[bytes], part: int) -> None:
    stream = b"".join(map(frame_of, payloads))
    reader, found = FrameReader(1000), []
    for at in range(0, len(stream), part):
        found += reader.feed(stream[at : at + part])
    assert found == payloads


def test_a_frame_above_the_limit_is_refused_by_its_length_alone() -> None:
    reader = FrameReader(1000)
    with pytest.raises(BrokenFrame, match="1073741824 bytes; the limit is 1000"):
        reader.feed((1 << 30).to_bytes(4, "big"))


def test_a_payload_that_no_peer_reads_makes_no_frame() -> None:
    with pytest.raises(BrokenFrame, match="the limit is"):
        frame_of(bytes(MAX_BYTES + 1))
