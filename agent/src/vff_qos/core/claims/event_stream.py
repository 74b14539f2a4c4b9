"""sing-box's stream of connections (1.14): gRPC over plain HTTP/2, bytes in, events out.

Only what one server-streaming call needs (RFC 9113; no HPACK decoding: headers of answers are
passed over, and a call that was refused ends its stream).  Everything is bounded; what breaks the
rules raises BadStream, and the caller connects anew.

``/daemon.StartedService/SubscribeConnections`` sends messages with repeated events: kind (0 new,
1 update, 2 closed) and the connection, whose fields 2, 6 and 10 are inbound, source and user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

#: What we let the engine send without being told that we have read it; it is told at half of it.
WINDOW_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 14
MAX_MESSAGE_BYTES = 8 << 20
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK, _END_STREAM, _END_HEADERS, _PADDED = 1, 1, 4, 8
_INITIAL_WINDOW = 4  # SETTINGS_INITIAL_WINDOW_SIZE


class BadStream(Exception):
    """What came is not what the engine sends; connect anew."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541, 6.2.2), without Huffman."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),))
    rest, found = len(text) - 127, bytearray((127,))
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes((*found, rest))


def request(authority: str, secret: str, interval_s: float) -> bytes:
    """All that is sent to open the stream; updates come every ``interval_s``."""
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":authority", authority.encode()),
        (b":path", b"/daemon.StartedService/SubscribeConnections"), (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    if secret:
        fields.append((b"authorization", b"Bearer " + secret.encode()))
    message = b"\x08" + _varint(round(interval_s * 1e9))
    window = _INITIAL_WINDOW.to_bytes(2, "big") + WINDOW_BYTES.to_bytes(4, "big")
    return b"".join(
        (
            _PREFACE,
            frame(_SETTINGS, 0, 0, window),
            frame(_WINDOW, 0, 0, (WINDOW_BYTES - 65_535).to_bytes(4, "big")),
            frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(n, v) for n, v in fields)),
            frame(_DATA, _END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message),
        )
    )


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


class Messages:
    """Takes what the engine sends; ``answer`` is to be sent back, ``ended`` says why it is over."""

    def __init__(self) -> None:
        self.answer = b""
        self.ended = ""
        self._bytes = bytearray()
        self._data = bytearray()
        self._unread = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Whole gRPC messages.  Raises BadStream."""
        self._bytes += piece
        while len(self._bytes) >= 9:
            size = int.from_bytes(self._bytes[:3], "big")
            if size > MAX_FRAME_BYTES:
                raise BadStream(f"a frame of {size} bytes")
            if len(self._bytes) < 9 + size:
                break
            kind, flags = self._bytes[3], self._bytes[4]
            payload = bytes(self._bytes[9 : 9 + size])
            del self._bytes[: 9 + size]
            self._take(kind, flags, payload)
        return list(self._whole())

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _DATA:
            self._count(len(payload))
            if flags & _PADDED:
                if not payload or payload[0] >= len(payload):
                    raise BadStream("padding beyond its frame")
                payload = payload[1 : len(payload) - payload[0]]
            self._data += payload
        elif kind == _SETTINGS and not flags & _ACK:
            self.answer += frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self.answer += frame(_PING, _ACK, 0, payload[:8])
        elif kind == _RESET:
            self.ended = "the engine has ended the stream"
        elif kind == _GOAWAY:
            self.ended = "the engine closes the connection"
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.ended = "the engine has refused the call, or ended it"

    def _count(self, size: int) -> None:
        self._unread += size
        if self._unread >= WINDOW_BYTES // 2:
            more = self._unread.to_bytes(4, "big")
            self.answer += frame(_WINDOW, 0, 0, more) + frame(_WINDOW, 0, 1, more)
            self._unread = 0

    def _whole(self) -> Iterator[bytes]:
        while len(self._data) >= 5:
            size = int.from_bytes(self._data[1:5], "big")
            if self._data[0] or size > MAX_MESSAGE_BYTES:
                raise BadStream("a message that is compressed or too long")
            if len(self._data) < 5 + size:
                return
            yield bytes(self._data[5 : 5 + size])
            del self._data[: 5 + size]


class Fields(NamedTuple):
    """One field of a message: its number, and a number or bytes."""

    number: int
    value: int | bytes


def fields(message: bytes) -> Iterator[Fields]:
    """The fields of a protocol buffer.  Raises BadStream."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        kind = key & 7
        if kind == 0:
            value: int | bytes
            value, place = _read_varint(message, place)
        elif kind == 2:
            size, place = _read_varint(message, place)
            value, place = message[place : place + size], place + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, place = message[place : place + size], place + size
        else:
            raise BadStream(f"a field of kind {kind}")
        if place > len(message):
            raise BadStream("a field beyond its message")
        yield Fields(key >> 3, value)


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    found = shift = 0
    while shift < 70:
        if place >= len(message):
            raise BadStream("a number beyond its message")
        byte = message[place]
        place += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, place
        shift += 7
    raise BadStream("a number of more than ten bytes")


class Told(NamedTuple):
    """A connection that is new, and whose it is; ``created_ms`` since the epoch."""

    source: bytes
    inbound: bytes
    user: bytes
    protocol: bytes
    created_ms: int


_EVENTS, _KIND, _CONNECTION = 1, 1, 3
_INBOUND, _PROTOCOL, _SOURCE, _USER, _CREATED = 2, 5, 6, 10, 12


def new_connections(message: bytes) -> Iterator[Told]:
    """The new connections of a message, those without a user, too.  Raises BadStream."""
    for number, event in fields(message):
        if number != _EVENTS or not isinstance(event, bytes):
            continue
        found = dict(fields(event))
        connection = found.get(_CONNECTION)
        if found.get(_KIND, 0) != 0 or not isinstance(connection, bytes):
            continue
        values = dict(fields(connection))
        created_ms = values.get(_CREATED, 0)
        if not isinstance(created_ms, int):
            raise BadStream("a time that is no number")
        text = [_text(values.get(n, b"")) for n in (_SOURCE, _INBOUND, _USER, _PROTOCOL)]
        yield Told(text[0], text[1], text[2], text[3], created_ms)


def _text(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise BadStream("a number in the place of a text")
    return value
