"""Marks of flows: ctnetlink packed by hand.

Source of the numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.  A tuple is written
as the client sees it: source is the client, destination is our address and service port.

Longer than 400 lines: setting, reading and deleting share one way of packing.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

from ...core.flow import Flow
from ...errors import KernelRefused
from .netlink import (
    HEADER,
    MAX_BATCH,
    NETLINK_NETFILTER,
    NLM_F_REQUEST,
    Answer,
    Collected,
    Decoded,
    Encoder,
    Netlink,
    attr,
    attrs,
    nest,
)

_CT_NEW = 1 << 8 | 0
_CT_GET = 1 << 8 | 1
_CT_DELETE = 1 << 8 | 2

_TUPLE_ORIG = 1
_MARK = 8
_ID = 12
_ZONE = 18
_MARK_MASK = 21
_COUNTERS_ORIG, _COUNTERS_REPLY, _COUNTERS_BYTES = 9, 10, 2
_TIMESTAMP, _TIMESTAMP_START = 20, 1

_U32 = struct.Struct(">I")
_ATTR = struct.Struct("=HH")

# nfgenmsg, CTA_TUPLE_ORIG{CTA_TUPLE_IP{src, dst}, CTA_TUPLE_PROTO{num, sport, dport}}
_TUPLE = "=BBH HH HH HH{n}s HH{n}s HH HHB3x HH2s2x HH2s2x"
_TUPLE4, _TUPLE6 = struct.Struct(_TUPLE.format(n=4)), struct.Struct(_TUPLE.format(n=16))
_MARKING = struct.Struct("=HH4s HH4s")
_N = 0x8000
_FULL_MASK = b"\xff\xff\xff\xff"

_TYPE_AT, _SEQ_AT = 4, 8  # where a message has its type and its sequence number


class Entry(NamedTuple):
    """One conntrack entry: ``tuple_raw`` is the payload of its CTA_TUPLE_ORIG."""

    family: int
    tuple_raw: bytes
    mark: int
    ident: int
    zone: int


class Detail(NamedTuple):
    """An entry as people want it; bytes are None without nf_conntrack_acct, ``started_ns`` is time
    since the epoch, 0 without nf_conntrack_timestamp."""

    tuple_raw: bytes
    mark: int
    orig_bytes: int | None
    reply_bytes: int | None
    started_ns: int


def encode_set(seq: int, flow: Flow, mark: int) -> bytes:
    """Request to give ``flow`` the mark ``mark`` (all 32 bits).  ENOENT: no such flow."""
    proto, src, sport, dst, dport = flow
    size = len(src)
    v4 = size == 4
    body = (_TUPLE4 if v4 else _TUPLE6).pack(
        socket.AF_INET if v4 else socket.AF_INET6, 0, 0,
        44 + 2 * size, _N | 1, 12 + 2 * size, _N | 1,
        4 + size, 1 if v4 else 3, src, 4 + size, 2 if v4 else 4, dst,
        28, _N | 2, 5, 1, proto,
        6, 2, sport.to_bytes(2, "big"), 6, 3, dport.to_bytes(2, "big"),
    )  # fmt: skip
    marking = _MARKING.pack(8, _MARK, mark.to_bytes(4, "big"), 8, _MARK_MASK, _FULL_MASK)
    length = HEADER.size + len(body) + len(marking)
    return HEADER.pack(length, _CT_NEW, NLM_F_REQUEST, seq, 0) + body + marking


def _encoder(request: bytes, kind: int) -> Encoder:
    head = request[:_TYPE_AT] + struct.pack("=H", kind) + request[_TYPE_AT + 2 : _SEQ_AT]
    return lambda seq: head + struct.pack("=I", seq) + request[_SEQ_AT + 4 :]


def _raw(kind: int, seq: int, entry: Entry, *more: bytes) -> bytes:
    body = struct.pack("=BBH", entry.family, 0, 0) + nest(_TUPLE_ORIG, entry.tuple_raw)
    if entry.zone:
        body += attr(_ZONE, struct.pack(">H", entry.zone))
    body += b"".join(more)
    return HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, seq, 0) + body


def encode_get_raw(seq: int, entry: Entry) -> bytes:
    """Request for the entry that has the tuple of a dumped ``entry`` now."""
    return _raw(_CT_GET, seq, entry)


def encode_set_raw(seq: int, entry: Entry, mark: int) -> bytes:
    """Request to give the flow of a dumped ``entry`` the mark ``mark``; keeps the zone."""
    return _raw(_CT_NEW, seq, entry, attr(_MARK, _U32.pack(mark)), attr(_MARK_MASK, _FULL_MASK))


def decode(payload: bytes) -> Entry:
    """An entry from the payload (after nlmsghdr) of a conntrack message."""
    tuple_raw = b""
    mark = ident = zone = 0
    for kind, start, end in attrs(payload, 4):
        if kind == _TUPLE_ORIG:
            tuple_raw = payload[start:end]
        elif kind == _MARK:
            mark = _U32.unpack_from(payload, start)[0]
        elif kind == _ID:
            ident = _U32.unpack_from(payload, start)[0]
        elif kind == _ZONE:
            zone = payload[start] << 8 | payload[start + 1]
    return Entry(payload[0], tuple_raw, mark, ident, zone)


def decode_detail(payload: bytes) -> Detail:
    """An entry from the payload of its message."""
    found = {kind: (start, end) for kind, start, end in attrs(payload, 4)}
    mark = found.get(_MARK)
    return Detail(
        payload[slice(*found[_TUPLE_ORIG])],
        int.from_bytes(payload[slice(*mark)], "big") if mark else 0,
        _inner(payload, found.get(_COUNTERS_ORIG), _COUNTERS_BYTES),
        _inner(payload, found.get(_COUNTERS_REPLY), _COUNTERS_BYTES),
        _inner(payload, found.get(_TIMESTAMP), _TIMESTAMP_START) or 0,
    )


def _inner(payload: bytes, nest_: tuple[int, int] | None, wanted: int) -> int | None:
    """A number within a nest; None if there is none."""
    if nest_ is not None:
        for kind, start, end in attrs(payload, *nest_):
            if kind == wanted:
                return int.from_bytes(payload[start:end], "big")
    return None


def decode_mark(payload: bytes) -> int:
    """Only the mark of an entry (0 if it has none)."""
    start, stop = 4, len(payload) - 8
    while start <= stop:
        length, kind = _ATTR.unpack_from(payload, start)
        if kind == _MARK:
            return int.from_bytes(payload[start + 4 : start + 8], "big")
        start += (max(length, 4) + 3) & ~3
    return 0


def decode_mark_and_source(payload: bytes) -> tuple[int, bytes]:
    """Only the mark and the source address of an entry.

    The address is the first that ctnetlink_fill_info (net/netfilter/nf_conntrack_netlink.c)
    writes: within CTA_TUPLE_ORIG, within CTA_TUPLE_IP.
    """
    source = payload[16:20] if payload[0] == socket.AF_INET else payload[16:32]
    return decode_mark(payload), source


def decode_tuple(tuple_raw: bytes) -> Flow | None:
    """The TCP or UDP tuple within a CTA_TUPLE_ORIG; None for protocols without ports."""
    src = dst = b""
    proto = 0
    ports: dict[int, int] = {}
    for kind, start, end in attrs(tuple_raw):
        for inner, at, stop in attrs(tuple_raw, start, end):
            if kind == 1 and inner in (1, 3):
                src = tuple_raw[at:stop]
            elif kind == 1 and inner in (2, 4):
                dst = tuple_raw[at:stop]
            elif kind == 2 and inner == 1:
                proto = tuple_raw[at]
            elif kind == 2 and inner in (2, 3):
                ports[inner] = tuple_raw[at] << 8 | tuple_raw[at + 1]
    if not src or not dst or len(ports) != 2:
        return None
    return Flow(proto, src, ports[2], dst, ports[3])


def prepare(flow: Flow, mark: int = 0) -> bytes:
    """The request to give ``flow`` the mark, for ``set_marks``; ``get_marks`` ignores the mark."""
    return encode_set(0, flow, mark)


#: Our end to what stands around the client's address and port in a request.
_around: dict[bytes, tuple[bytes, bytes, bytes]] = {}
_MAX_AROUND = 65_536
#: What follows the four bytes of the mark in a request.
_AFTER_MARK = struct.pack("=HH", 8, _MARK_MASK) + _FULL_MASK


def pack_mark(client: bytes, ours: bytes, mark: int) -> bytes:
    """The same as ``prepare``, a third of its cost.

    ``client`` is the packed address and port, ``ours`` the number of the protocol (one byte), our
    packed address and port.
    """
    first, second, third = surround(ours)
    tag = mark.to_bytes(4, "big")
    return b"".join((first, client[:-2], second, client[-2:], third, tag, _AFTER_MARK))


def pack_marks(
    around: tuple[bytes, bytes, bytes], clients: Sequence[bytes], marks: Sequence[int]
) -> tuple[bytearray, int]:
    """The same for many flows to one of our ends, and the size of each request.

    Byte by byte for all at once: a fifth of the cost.
    """
    first, second, third = around
    width = len(clients[0])
    request = b"".join((first, bytes(width - 2), second, bytes(2), third, bytes(4), _AFTER_MARK))
    size, buffer = len(request), bytearray(request * len(clients))
    ends = b"".join(clients)
    address = len(first)
    port = address + width - 2 + len(second)
    places = [*range(address, address + width - 2), port, port + 1]
    for byte, place in enumerate(places):
        buffer[place::size] = ends[byte::width]
    numbers = array("I", marks)
    if sys.byteorder == "little":
        numbers.byteswap()
    tags, tag = numbers.tobytes(), port + 2 + len(third)
    for byte in range(4):
        buffer[tag + byte :: size] = tags[byte::4]
    return buffer, size


def surround(ours: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands in a request before the client's address, its port, and the mark's part.

    ``ours`` as for `pack_mark`.
    """
    around = _around.get(ours)
    if around is not None:
        return around
    if len(_around) >= _MAX_AROUND:
        _around.clear()
    size = len(ours) - 3
    flow = Flow(ours[0], bytes(size), 0, ours[1:-2], int.from_bytes(ours[-2:], "big"))
    request = encode_set(0, flow, 0)
    # The nests of tuple and addresses and one attribute's header stand before the source; then its
    # destination, the nest of the ports and the protocol's number before the source port.
    source = HEADER.size + 4 + 12
    port = source + size + 4 + size + 4 + 8 + 4
    around = request[:source], request[source + size : port], request[port + 2 : -12]
    _around[ours] = around
    return around


def unpack(prepared: bytes) -> tuple[Flow, int]:
    """Flow and mark of a prepared request."""
    entry = decode(prepared[HEADER.size :])
    flow = decode_tuple(entry.tuple_raw)
    assert flow is not None  # we packed it
    return flow, entry.mark


def _count(found: Iterator[int]) -> int:
    return sum(1 for _ in found)


class Conntrack:
    """The conntrack table of this network namespace."""

    def __init__(self) -> None:
        self.netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Release the socket."""
        self.netlink.close()

    def get_marks(self, prepared: list[bytes]) -> list[int | None]:
        """The mark that each request's flow has now; None where the table has no such flow."""
        return self.get(prepared, decode_mark)

    def get(self, prepared: list[bytes], made: Callable[[bytes], Decoded]) -> list[Decoded | None]:
        """``made`` of the entry of each request's flow; None where the table has no such flow.

        Raises KernelRefused.
        """
        errors, answers = self._send(prepared, _CT_GET)
        for index, code in errors.items():
            if code != errno.ENOENT:
                raise KernelRefused(
                    code, f"reading the conntrack entry of {unpack(prepared[index])[0]}"
                )
        found: list[Decoded | None] = [None] * len(prepared)
        for index, _kind, payload in answers:
            found[index] = made(payload)
        return found

    def set_marks(self, prepared: list[bytes]) -> dict[int, int]:
        """Set marks; {index: errno} of those that failed (ENOENT: the flow is gone)."""
        return self._send(prepared, _CT_NEW)[0]

    def give_marks(
        self, around: tuple[bytes, bytes, bytes], clients: Sequence[bytes], marks: Sequence[int]
    ) -> dict[int, int]:
        """Set marks of flows to one of our ends, see `surround`; {index: errno} of what failed.

        ``clients`` are their packed addresses and ports.
        """
        errors: dict[int, int] = {}
        for start in range(0, len(clients), MAX_BATCH):
            part = slice(start, start + MAX_BATCH)
            buffer, size = pack_marks(around, clients[part], marks[part])
            failed, _answers = self._exchange(buffer, size, _CT_NEW)
            errors.update((start + index, code) for index, code in failed.items())
        return errors

    def delete(self, flows: list[Flow]) -> None:
        """Delete the entries of flows, as far as there are any.  Raises KernelRefused."""
        errors, _answers = self._send([prepare(flow) for flow in flows], _CT_DELETE)
        for index, code in errors.items():
            if code != errno.ENOENT:
                raise KernelRefused(code, f"deleting the conntrack entry of {flows[index]}")

    def _send(self, prepared: list[bytes], kind: int) -> tuple[dict[int, int], list[Answer]]:
        """Prepared requests as ``kind``, in batches; errors and answers by their indexes.

        The hottest path there is: nothing is packed for a flow that was seen before.
        """
        errors: dict[int, int] = {}
        answers: list[Answer] = []
        sizes = set(map(len, prepared))
        for size in sizes:
            indexes: Sequence[int] = range(len(prepared))
            if len(sizes) > 1:  # IPv4 and IPv6
                indexes = [i for i, request in enumerate(prepared) if len(request) == size]
            for start in range(0, len(indexes), MAX_BATCH):
                part = indexes[start : start + MAX_BATCH]
                if len(sizes) > 1:
                    requests = [prepared[index] for index in part]
                else:
                    requests = prepared[start : start + MAX_BATCH]
                failed, replies = self._send_batch(requests, size, kind)
                errors.update((part[index], code) for index, code in failed.items())
                answers += [(part[index], answer, text) for index, answer, text in replies]
        return errors, answers

    def _send_batch(
        self, requests: list[bytes], size: int, kind: int
    ) -> tuple[dict[int, int], list[Answer]]:
        """One batch of requests of equal ``size``."""
        return self._exchange(bytearray().join(requests), size, kind)

    def _exchange(
        self, buffer: bytearray, size: int, kind: int
    ) -> tuple[dict[int, int], list[Answer]]:
        """A batch of requests of equal ``size``: their numbers are filled in all at once."""
        netlink, seq, count = self.netlink, self.netlink.next_seq, len(buffer) // size
        numbers = array("I", range(seq, seq + count)).tobytes()
        buffer[_TYPE_AT::size] = bytes((kind & 0xFF,)) * count
        for byte in range(4):
            buffer[_SEQ_AT + byte :: size] = numbers[byte::4]
        failed, answers, lost = netlink.exchange(buffer, count)
        if lost:
            requests = [bytes(buffer[at : at + size]) for at in range(0, len(buffer), size)]
            failed, replies = netlink.batch([_encoder(request, kind) for request in requests])
            answers = list(replies)
        return failed, answers

    def dump(self, mark: int = 0, mask: int = 0) -> list[Entry]:
        """Entries whose mark equals ``mark`` under ``mask``; the kernel filters."""
        return self._dump(mark, mask, decode)

    def dump_of(self, mark: int, mask: int, marks: Container[int]) -> list[Entry]:
        """Those of `dump` whose whole mark is among ``marks``; no other is decoded."""

        def wanted(payload: bytes) -> Entry | None:
            return decode(payload) if decode_mark(payload) in marks else None

        return self._dump(mark, mask, wanted)

    def dump_details(self, mark: int = 0, mask: int = 0) -> list[Detail]:
        """As ``dump``, with all that people ask for."""
        return self._dump(mark, mask, decode_detail)

    def dump_marks(self, mark: int, mask: int) -> list[int]:
        """Only the marks of what `dump` gives: a third of its time, a tenth of its memory."""
        return self._dump(mark, mask, decode_mark)

    def sources(
        self, mark: int, mask: int, into: Callable[[Iterator[tuple[int, bytes]]], Collected]
    ) -> Collected:
        """``into`` of the marks of what `dump` gives, each with the packed source address."""
        return self.collect(mark, mask, decode_mark_and_source, into)

    def count(self, mark: int, mask: int) -> int:
        """How many entries `dump` would give; nothing of them is kept."""
        return self.collect(mark, mask, len, _count)

    def read(self, mark: int, mask: int, into: Callable[[Iterator[Entry]], Collected]) -> Collected:
        """``into`` of the entries of `dump` while they are read, see `Netlink.collect`: a list of
        50,000 has 10 MiB."""
        return self.collect(mark, mask, decode, into)

    def _dump(self, mark: int, mask: int, made: Callable[[bytes], Decoded | None]) -> list[Decoded]:
        return self.collect(mark, mask, made, list)

    def collect(
        self,
        mark: int,
        mask: int,
        made: Callable[[bytes], Decoded | None],
        into: Callable[[Iterator[Decoded]], Collected],
    ) -> Collected:
        """``into`` of what ``made`` makes of each message of `dump`."""
        payload = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        if mask:
            payload += attr(_MARK, _U32.pack(mark)) + attr(_MARK_MASK, _U32.pack(mask))
        return self.netlink.collect(_CT_GET, payload, "reading the conntrack table", made, into)

    def live(self, entries: list[Entry]) -> list[Entry]:
        """Those of dumped ``entries`` whose flow still is the same one (same id) and unmarked."""
        _errors, replies = self.netlink.batch(
            [lambda s, e=entry: encode_get_raw(s, e) for entry in entries]  # type: ignore[misc]
        )
        found = []
        for reply in replies:
            now = decode(reply.payload)
            if now.ident == entries[reply.number].ident and now.mark == 0:
                found.append(entries[reply.number])
        return found

    def set_entries(self, marks: list[tuple[Entry, int]]) -> int:
        """Set marks of dumped entries; returns how many still existed.  Raises KernelRefused."""
        errors, _ = self.netlink.batch(
            [lambda s, e=entry, m=mark: encode_set_raw(s, e, m) for entry, mark in marks]  # type: ignore[misc]
        )
        for code in errors.values():
            if code != errno.ENOENT:
                raise KernelRefused(code, "setting the mark of a conntrack entry")
        return len(marks) - len(errors)
