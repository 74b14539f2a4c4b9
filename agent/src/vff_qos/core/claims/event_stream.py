"""sing-box's stream of connections (1.14): gRPC over plain HTTP/2, bytes in, events out.

Only what one server-streaming call needs (RFC 9113; of headers only the status of gRPC is looked
for).  Everything is bounded, and no event is kept longer than it takes to read it; what breaks the
rules raises BadStream, and the caller connects anew.

``/daemon.StartedService/SubscribeConnections`` (daemon/started_service.proto) sends messages with
repeated events: first one with all connections that there are, then those that begin.  An event has
a kind (0 new, 1 update, 2 closed) and a connection, whose fields 2, 6, 10, 12 and 13 are inbound,
source, user, and when it began and ended.  Protocol buffers give each text its length: no name that
a customer chose can leave its place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from .accesslog import Claim, pack_end
from .webhook_event import read_email, read_end

#: What we let the engine send without being told that we have read it; it is told at half of it.
WINDOW_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 14
#: A longer event is passed over.
MAX_EVENT_BYTES = 1 << 16
_MAX_TAG_BYTES = 512
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK, _END_STREAM, _END_HEADERS, _PADDED = 1, 1, 4, 8
_INITIAL_WINDOW = 4  # SETTINGS_INITIAL_WINDOW_SIZE
#: "grpc-status" as Go's HPACK encoder writes it, by RFC 7541's Huffman code; the number follows.
_STATUS = b"\x40\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f"


class BadStream(Exception):
    """What came is not what the engine sends; connect anew."""


class Ended(Enum):
    """Why the engine has ended the call: statuses of gRPC."""

    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAUTHENTICATED = 16
    #: Others, or none was told.
    OTHERWISE = -1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


PING = frame(_PING, 0, 0, b"vff-qos?")


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541, 6.2.2), without Huffman."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),))
    return bytes((127,)) + _varint(len(text) - 127)


def request(authority: str, secret: str, interval_s: float) -> bytes:
    """All that is sent to open the stream; updates come every ``interval_s``."""
    fields_ = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":authority", authority.encode()),
        (b":path", b"/daemon.StartedService/SubscribeConnections"), (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    if secret:
        fields_.append((b"authorization", b"Bearer " + secret.encode()))
    message = b"\x08" + _varint(round(interval_s * 1e9))
    window = _INITIAL_WINDOW.to_bytes(2, "big") + WINDOW_BYTES.to_bytes(4, "big")
    return b"".join(
        (
            _PREFACE,
            frame(_SETTINGS, 0, 0, window),
            frame(_WINDOW, 0, 0, (WINDOW_BYTES - 65_535).to_bytes(4, "big")),
            frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(n, v) for n, v in fields_)),
            frame(_DATA, _END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message),
        )
    )


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


class Events:
    """Takes what the engine sends; gives events, as bytes."""

    def __init__(self) -> None:
        #: What is to be sent back; the caller takes it away.
        self.answer = b""
        #: Why it is over; None while it is not.
        self.ended: Ended | None = None
        #: Whether a message has begun: the engine has taken the request.
        self.begun = False
        #: Events that were too long to be looked at.
        self.overlong = 0
        self._bytes = bytearray()
        self._data = bytearray()
        # Of the message: bytes still to come; of them those of an event that is passed over.
        self._left = self._passing = 0
        self._unread = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that ``piece`` completes.  Raises BadStream."""
        self._bytes += piece
        place = 0
        while len(self._bytes) - place >= 9:
            size = int.from_bytes(self._bytes[place : place + 3], "big")
            if size > MAX_FRAME_BYTES:
                raise BadStream(f"a frame of {size} bytes")
            end = place + 9 + size
            if len(self._bytes) < end:
                break
            kind, flags = self._bytes[place + 3], self._bytes[place + 4]
            self._take(kind, flags, bytes(self._bytes[place + 9 : end]))
            place = end
        del self._bytes[:place]
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
        elif kind in (_RESET, _GOAWAY):
            self.ended = self.ended or Ended.OTHERWISE
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.ended = _status(payload) if kind == _HEADERS else Ended.OTHERWISE

    def _count(self, size: int) -> None:
        self._unread += size
        if self._unread >= WINDOW_BYTES // 2:
            more = self._unread.to_bytes(4, "big")
            self.answer += frame(_WINDOW, 0, 0, more) + frame(_WINDOW, 0, 1, more)
            self._unread = 0

    def _whole(self) -> Iterator[bytes]:
        """The fields of messages, as they come: a message may be longer than what is kept."""
        data, place = self._data, 0
        while True:
            if self._passing:
                step = min(self._passing, len(data) - place)
                self._passing -= step
                self._left -= step
                place += step
                if self._passing:
                    break
            if not self._left:
                if len(data) - place < 5:
                    break
                if data[place]:
                    raise BadStream("a message that is compressed")
                self._left = int.from_bytes(data[place + 1 : place + 5], "big")
                self.begun = True
                place += 5
                continue
            head = _head(data, place, place + self._left)
            if head is None:
                break
            number, kind, start, size = head
            if start + size > place + self._left:
                raise BadStream("a field beyond its message")
            if size > MAX_EVENT_BYTES:
                self.overlong += 1
                self._left -= start - place
                self._passing, place = size, start
                continue
            if start + size > len(data):
                break
            if number == _EVENTS and kind == 2:
                yield bytes(data[start : start + size])
            self._left -= start + size - place
            place = start + size
        del data[:place]


def _status(block: bytes) -> Ended:
    """The status of gRPC in a block of headers."""
    _before, found, after = block.partition(_STATUS)
    text = after[1 : 1 + after[0]] if found and after else b""
    known = {str(status.value).encode(): status for status in Ended}
    return known.get(text, Ended.OTHERWISE)


def _head(data: bytearray, place: int, end: int) -> tuple[int, int, int, int] | None:
    """Of a field: its number, its kind, where its value begins and how long that is; None if there
    is more to come.  Raises BadStream."""
    try:
        key, start = _read_varint(data, place)
        kind = key & 7
        if kind == 0:
            _value, after = _read_varint(data, start)
            return key >> 3, kind, start, after - start
        if kind == 2:
            size, start = _read_varint(data, start)
            return key >> 3, kind, start, size
    except _Short:
        if len(data) >= end:
            raise BadStream("a number beyond its message") from None
        return None
    if kind in (1, 5):
        return key >> 3, kind, start, 8 if kind == 1 else 4
    raise BadStream(f"a field of kind {kind}")


class _Short(BadStream):
    def __init__(self) -> None:
        super().__init__("a number beyond its message")


def _read_varint(message: bytes | bytearray, place: int) -> tuple[int, int]:
    found = shift = 0
    while shift < 70:
        if place >= len(message):
            raise _Short
        byte = message[place]
        place += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, place
        shift += 7
    raise BadStream("a number of more than ten bytes")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: their numbers, and numbers or bytes.  Raises BadStream."""
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
        yield key >> 3, value


class Unclaimed(Enum):
    """Why an event claims nothing."""

    OLD = "it is no connection that begins"
    NO_USER = "it names no user"
    NO_FLOW = "its source is no address and port of a socket"
    BAD_NAME = "the user's name is too long or not printable"


class Begun(NamedTuple):
    """The claim of a connection, which began at ``created_ms`` since the epoch."""

    claim: Claim
    created_ms: int


_EVENTS, _KIND, _CONNECTION = 1, 1, 3
_INBOUND, _SOURCE, _USER, _CREATED, _CLOSED = 2, 6, 10, 12, 13
#: The year 2286: later times have no stamp.
_MAX_MS = 10**13


def read_event(event: bytes) -> Begun | Unclaimed:
    """One event.  Raises BadStream."""
    found = dict(fields(event))
    connection = found.get(_CONNECTION)
    if found.get(_KIND, 0) != 0 or not isinstance(connection, bytes):
        return Unclaimed.OLD
    values = dict(fields(connection))
    if values.get(_CLOSED, 0) != 0:
        return Unclaimed.OLD  # with the first message those come, too, that have ended lately
    created_ms = values.get(_CREATED, 0)
    if not isinstance(created_ms, int) or not 0 < created_ms < _MAX_MS:
        raise BadStream("a time that is none")
    user, source, inbound = (_text(values.get(n, b"")) for n in (_USER, _SOURCE, _INBOUND))
    if not user:
        return Unclaimed.NO_USER
    name = read_email(user)
    if name is None:
        return Unclaimed.BAD_NAME
    end = read_end(source)
    if end is None:
        return Unclaimed.NO_FLOW
    tag = inbound.encode()[:_MAX_TAG_BYTES]
    return Begun(
        Claim(pack_end(end), tag, name, False, _stamp(created_ms), end=end), created_ms
    )  # fmt: skip


def _stamp(created_ms: int) -> bytes:
    """As in an access log, of the zone UTC."""
    whole = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(created_ms // 1000))
    return f"{whole}.{created_ms % 1000:03d}".encode()


def _text(value: int | bytes) -> str:
    if isinstance(value, int):
        raise BadStream("a number in the place of a text")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadStream("a text that is not UTF-8") from error
