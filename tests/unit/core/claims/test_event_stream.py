"""sing-box's stream of connections: real bytes, and hostile ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.singbox_samples import REAL, REFUSED, STATUS, event, field, frames, message, varint
from vff_qos.core.claims.accesslog import Claim, Endpoint
from vff_qos.core.claims.event_stream import (
    MAX_EVENT_BYTES,
    WINDOW_BYTES,
    BadStream,
    Ended,
    Events,
    Unclaimed,
    fields,
    frame,
    read_event,
    request,
)


def test_a_new_connection_names_its_user() -> None:
    told = read_event(REAL)
    end = Endpoint(0, bytes((127, 0, 0, 1)), 50_494)
    claim = Claim(b"\x7f\0\0\1\xc5\x3e", b"in", b"bob", False, b"2026/11/26 10:57:35.823", end=end)
    assert told == (claim, 1_795_690_655_823)


@pytest.mark.parametrize(
    "text,why",
    [
        (event(1), Unclaimed.OLD),
        (event(2), Unclaimed.OLD),
        (event(closed=1_795_690_655_999), Unclaimed.OLD),
        (field(2, b"id"), Unclaimed.OLD),
        (event(user=b""), Unclaimed.NO_USER),
        (event(user=b"a\nb"), Unclaimed.BAD_NAME),
        (event(user=b"x" * 5_000), Unclaimed.BAD_NAME),
        (event(source=b"@"), Unclaimed.NO_FLOW),
        (event(source=b"192.0.2.1:0"), Unclaimed.NO_FLOW),
    ],
)
def test_what_claims_nothing(text: bytes, why: Unclaimed) -> None:
    assert read_event(text) is why


@pytest.mark.parametrize(
    "text",
    [
        event(created=0), event(created=1 << 62), event(created=b"now"), event(user=7),
        event(user=b"\xff"), event()[:-1], field(3, b"\x0b"),
    ],
)  # fmt: skip
def test_what_is_no_event(text: bytes) -> None:
    with pytest.raises(BadStream):
        read_event(text)


@pytest.mark.parametrize("source,address", [
    (b"[2001:db8::7]:5555", bytes.fromhex("20010db8" + "0" * 23 + "7")),
    (b"[::ffff:192.0.2.1]:5555", bytes((192, 0, 2, 1))),
])  # fmt: skip
def test_addresses_are_those_that_the_kernel_sees(source: bytes, address: bytes) -> None:
    told = read_event(event(source=source))
    assert not isinstance(told, Unclaimed)
    assert told.claim.end == Endpoint(0, address, 5_555)


def test_no_name_that_a_customer_chose_leaves_its_place() -> None:
    """A target that is an event, a newline and all."""
    told = read_event(event(target=b"a\n" + event(user=b"victim") + b":443"))
    assert not isinstance(told, Unclaimed)
    assert told.claim.email == b"bob"


TEXT = (
    frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678") + frames(message(REAL, event()))
    + frames(message()) + frames(message(event(user=b"carol")), 7)
)  # fmt: skip
FOUND = [REAL, event(), event(user=b"carol")]


def feed(events: Events, pieces: Iterable[bytes]) -> list[bytes]:
    return [found for piece in pieces for found in events.feed(piece)]


@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_events_are_whole_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    events = Events()
    found = feed(events, (TEXT[a:b] for a, b in itertools.pairwise(places)))
    assert found == FOUND
    assert events.answer == frame(4, 1, 0, b"") + frame(6, 1, 0, b"12345678")
    assert events.begun and events.ended is None


def test_byte_by_byte() -> None:
    assert feed(Events(), (TEXT[k : k + 1] for k in range(len(TEXT)))) == FOUND


def test_a_message_may_be_longer_than_all_that_is_kept() -> None:
    """The first one has all connections that there are."""
    text = frames(message(*[event(target=b"x" * 200)] * 100_000))
    events = Events()
    assert len(text) > 20 << 20
    count = sum(len(events.feed(text[at : at + 65_536])) for at in range(0, len(text), 65_536))
    assert count == 100_000
    assert len(events._bytes) + len(events._data) == 0


def test_an_event_that_is_too_long_is_passed_over() -> None:
    """A customer chooses how long a name is; the next event is not theirs."""
    long = event(target=b"x" * MAX_EVENT_BYTES)
    for size in (1_000, 16_384):
        events = Events()
        assert events.feed(frames(message(REAL, long, event()), size)) == [REAL, event()]
        assert events.overlong == 1


def test_the_engine_may_go_on_when_half_of_the_window_is_read() -> None:
    events = Events()
    piece = frame(0, 0, 1, b"\0" + (16_000).to_bytes(4, "big") + field(1, bytes(15_997)))
    for _ in range(WINDOW_BYTES // 2 // 16_005 + 1):
        assert events.answer == b""
        events.feed(piece)
    size = 16_005 * (WINDOW_BYTES // 2 // 16_005 + 1)
    more = size.to_bytes(4, "big")
    assert events.answer == frame(8, 0, 0, more) + frame(8, 0, 1, more)


@pytest.mark.parametrize(
    "piece",
    [
        b"\xff\xff\xff\0\0\0\0\0\1",
        frame(0, 8, 1, b"\5abc"),
        frame(0, 0, 1, b"\1\0\0\0\1x"),
        frame(0, 0, 1, b"\0\0\0\0\2\x0a\7"),
        frame(0, 0, 1, b"\0\0\0\0\1\x0a"),
        frame(0, 0, 1, b"\0\0\0\0\2\x0b\0"),
        frame(0, 0, 1, b"\0\0\0\0\x0c" + b"\xff" * 12),
    ],
    ids=["frame", "padding", "compressed", "beyond", "no length", "kind", "number"],
)
def test_what_breaks_the_rules_ends_it(piece: bytes) -> None:
    with pytest.raises(BadStream):
        Events().feed(piece)


@pytest.mark.parametrize(
    "end,why",
    [
        (frame(3, 0, 1, bytes(4)), Ended.OTHERWISE),
        (frame(7, 0, 0, bytes(8)), Ended.OTHERWISE),
        (frame(0, 1, 1, b""), Ended.OTHERWISE),
        (frame(1, 5, 1, b""), Ended.OTHERWISE),
        (frame(1, 5, 1, REFUSED + STATUS), Ended.OTHERWISE),
        (frame(1, 5, 1, REFUSED + STATUS + b"\x0299"), Ended.OTHERWISE),
        (frame(1, 5, 1, REFUSED + STATUS + b"\x0216"), Ended.UNAUTHENTICATED),
        (frame(1, 5, 1, REFUSED + STATUS + b"\x0213"), Ended.INTERNAL),
        (frame(1, 4, 1, b"\x88") + frame(1, 5, 1, STATUS + b"\x0212"), Ended.UNIMPLEMENTED),
    ],
)
def test_an_end_is_told(end: bytes, why: Ended) -> None:
    events = Events()
    events.feed(end)
    assert events.ended is why
    assert not events.begun


def test_a_long_secret_keeps_its_place() -> None:
    """HPACK's lengths have seven bits, and then others."""
    for size in (1, 120, 121, 200, 256):
        value = b"Bearer " + b"s" * size
        text = request("127.0.0.1:9091", "s" * size, 5.0)
        before, _, after = text.partition(b"\0\x0dauthorization")
        expected = (
            bytes((len(value),)) if len(value) < 127 else bytes((127,)) + varint(len(value) - 127)
        )
        assert before and after.startswith(expected + value + b"\0\0")


@given(st.binary(max_size=300))
def test_no_bytes_break_anything_else(text: bytes) -> None:
    for read in (
        Events().feed, lambda t: Events().feed(frame(0, 0, 1, t)),
        lambda t: Events().feed(frame(0, 0, 1, b"\0\0\0\1\0" + t)),
        lambda t: list(fields(t)), read_event,
    ):  # fmt: skip
        with contextlib.suppress(BadStream):
            read(text)
