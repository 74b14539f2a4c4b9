"""sing-box's stream of connections: real bytes, and hostile ones."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.event_stream import (
    MAX_MESSAGE_BYTES,
    WINDOW_BYTES,
    BadStream,
    Messages,
    fields,
    frame,
    new_connections,
)

#: What sing-box 1.14.4 has sent of a SOCKS5 connection.
REAL = bytes.fromhex(
    "0aa901122431356162313166612d383435372d343234622d623561322d3338323364393935383333631a80010a"
    "2431356162313166612d383435372d343234622d623561322d3338323364393935383333631202696e1a05736f"
    "636b7320042a03746370320f3132372e302e302e313a35303439343a0e3132372e302e302e313a373030305203"
    "626f6260cfe083bca1349a0106646972656374a20106646972656374aa0106646972656374"
)


def wire(message: bytes) -> bytes:
    return frame(0, 0, 1, b"\0" + len(message).to_bytes(4, "big") + message)


def test_a_new_connection_names_its_user() -> None:
    (told,) = new_connections(REAL)
    assert told == (b"127.0.0.1:50494", b"in", b"bob", b"tcp", 1_795_690_655_823)


def test_messages_are_whole_wherever_they_are_cut() -> None:
    text = frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678") + wire(REAL) + wire(b"\x10\1")
    for step in (1, 7, len(text)):
        messages = Messages()
        found = [m for k in range(0, len(text), step) for m in messages.feed(text[k : k + step])]
        assert found == [REAL, b"\x10\1"]
        assert messages.answer == frame(4, 1, 0, b"") + frame(6, 1, 0, b"12345678")


def test_the_engine_may_go_on_when_half_of_the_window_is_read() -> None:
    messages = Messages()
    piece = frame(0, 0, 1, b"\0" + (16_000).to_bytes(4, "big") + bytes(16_000))
    for _ in range(WINDOW_BYTES // 2 // 16_005 + 1):
        assert messages.answer == b""
        messages.feed(piece)
    size = 16_005 * (WINDOW_BYTES // 2 // 16_005 + 1)
    more = size.to_bytes(4, "big")
    assert messages.answer == frame(8, 0, 0, more) + frame(8, 0, 1, more)


@pytest.mark.parametrize(
    "piece",
    [
        b"\xff\xff\xff\0\0\0\0\0\1",
        frame(0, 8, 1, b"\5abc"),
        frame(0, 0, 1, b"\1\0\0\0\1x"),
        frame(0, 0, 1, b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")),
    ],
    ids=["frame too long", "padding", "compressed", "message too long"],
)
def test_what_breaks_the_rules_ends_it(piece: bytes) -> None:
    with pytest.raises(BadStream):
        Messages().feed(piece)


@pytest.mark.parametrize("end", [frame(3, 0, 1, bytes(4)), frame(7, 0, 0, bytes(8)),
                                 frame(1, 5, 1, b"")])  # fmt: skip
def test_an_end_is_told(end: bytes) -> None:
    messages = Messages()
    messages.feed(end)
    assert messages.ended


@given(st.binary(max_size=300))
def test_no_bytes_break_anything_else(text: bytes) -> None:
    for read in (Messages().feed, lambda t: list(fields(t)), lambda t: list(new_connections(t))):
        with contextlib.suppress(BadStream):
            read(text)
