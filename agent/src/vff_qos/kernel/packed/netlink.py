"""Raw netlink: many requests in one send, every error with the request that caused it.

pyroute2 costs 130 to 200 times as much for the two requests of the hot path (a conntrack mark,
an HTB class), so those are packed by hand; see netlink(7) and net/netlink/af_netlink.c.
The kernel works off the whole buffer before ``send`` returns, so that all answers wait in the
socket by then.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from ...errors import KernelRefused

NETLINK_NETFILTER = 12  # not in the socket module

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

HEADER = struct.Struct("=IHHII")  # nlmsg_len, nlmsg_type, nlmsg_flags, nlmsg_seq, nlmsg_pid
_ATTR = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
#: What fits into every socket's send buffer.
_SMALL_BYTES = 128 << 10

#: The error replies of one batch must fit into the receive buffer.
MAX_BATCH = 256
_RCVBUF_BYTES = 4 << 20
_RECV_BYTES = 1 << 16
#: One answer that is no dump's: none of the kernel's is as long as a page.
_ANSWER_BYTES = 1 << 13
#: How often a dump is begun that changes of the table interrupt.
DUMP_TRIES = 8

Encoder = Callable[[int], bytes]
Decoded = TypeVar("Decoded")
Collected = TypeVar("Collected")
#: Index of the request, type and payload of what answers it.
Answer = tuple[int, int, bytes]


class Interrupted(Exception):
    """A dump is not consistent: the table changed while it was read, or answers were lost."""


class Reply(NamedTuple):
    """One answer that is not an acknowledgement: number of its request, type, payload."""

    number: int
    kind: int
    payload: bytes


def attr(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    length = 4 + len(payload)
    return _ATTR.pack(length, kind) + payload + b"\0" * (-length & 3)


def nest(kind: int, *attrs: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def attrs(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(type, start of payload, end of payload) of each attribute between ``start`` and ``end``."""
    stop = len(data) if end is None else end
    while start + 4 <= stop:
        length, kind = _ATTR.unpack_from(data, start)
        if length < 4 or start + length > stop:
            raise ValueError("truncated netlink attribute")
        yield kind & NLA_TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def find_attr(data: bytes, wanted: int, start: int, end: int) -> tuple[int, int]:
    """(start, end) of the payload of the first attribute ``wanted``, both ``end`` without one.

    A third of the time of a loop over `attrs`.
    """
    while start + 4 <= end:
        length, kind = _ATTR.unpack_from(data, start)
        if kind & NLA_TYPE_MASK == wanted:
            return start + 4, start + length
        if length < 4:
            break
        start += (length + 3) & ~3
    return end, end


class Netlink:
    """A request socket.  Not thread safe; one per process and protocol."""

    def __init__(self, protocol: int) -> None:
        """``protocol`` is socket.NETLINK_ROUTE or NETLINK_NETFILTER.  Raises OSError."""
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        set_receive_buffer(self._sock, _RCVBUF_BYTES)
        # Errors then carry the header of the failed request only, not the request.
        self._sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sock.bind((0, 0))
        #: Netlink port id: notifications name the port whose request caused them.
        self.port_id: int = self._sock.getsockname()[0]
        self._seq = 1

    def close(self) -> None:
        """Release the socket."""
        self._sock.close()

    def batch(self, encoders: list[Encoder]) -> tuple[dict[int, int], list[Reply]]:
        """Send requests; return ({index: errno} of those that failed, other answers).

        Each encoder gets its sequence number and returns a whole message.  Requests must be
        idempotent: when answers are lost (ENOBUFS) the batch is sent again in halves.
        """
        errors: dict[int, int] = {}
        replies: list[Reply] = []
        for start in range(0, len(encoders), MAX_BATCH):
            part = encoders[start : start + MAX_BATCH]
            self._batch(part, start, errors, replies)
        return errors, replies

    def _batch(
        self, part: list[Encoder], start: int, errors: dict[int, int], replies: list[Reply]
    ) -> None:
        seq = self._seq
        buffer = b"".join([encode(seq + i) for i, encode in enumerate(part)])
        failed, answers, lost = self.exchange(buffer, len(part))
        if lost:
            if len(part) == 1:
                raise KernelRefused(errno.ENOBUFS, "receiving the answer to a netlink request")
            half = len(part) // 2
            self._batch(part[:half], start, errors, replies)
            self._batch(part[half:], start + half, errors, replies)
            return
        errors.update((start + index, code) for index, code in failed.items())
        replies.extend(Reply(start + index, kind, payload) for index, kind, payload in answers)

    @property
    def next_seq(self) -> int:
        """The sequence number that the first message of the next ``exchange`` must bear."""
        return self._seq

    def exchange(
        self, buffer: bytes | bytearray, count: int
    ) -> tuple[dict[int, int], list[Answer], bool]:
        """Send ``count`` packed messages numbered from ``next_seq``; read all answers.

        Returns ({index: errno}, answers, whether answers were lost).  A NOOP that asks for an
        acknowledgement closes the batch: the kernel answers it last, whatever the others are.
        """
        seq = self._seq
        last = seq + count
        # Room for a full batch of numbers without wrapping.
        self._seq = last + 1 if last < 0x7FFF0000 else 1
        self._sock.send(
            b"".join((buffer, HEADER.pack(16, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, last, 0)))
        )
        errors: dict[int, int] = {}
        replies: list[Answer] = []
        recv, header = self._sock.recv, HEADER.unpack_from
        lost = False
        while True:
            try:
                data = recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                # The closing acknowledgement itself was dropped.
                return errors, replies, True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            offset, end = 0, len(data)
            while offset < end:
                length, kind, _flags, number, _pid = header(data, offset)
                index = number - seq
                if kind == NLMSG_ERROR and 0 <= index <= count:
                    if index == count:
                        return errors, replies, lost
                    code = -_ERRNO.unpack_from(data, offset + 16)[0]
                    if code:
                        errors[index] = code
                elif 0 <= index < count:
                    replies.append((index, kind, data[offset + 16 : offset + length]))
                offset += (length + 3) & ~3

    def transact(self, encoders: list[Encoder]) -> int:
        """Send messages of which the kernel takes all or none (nf_tables); the errno, or 0.

        At least one must ask for an acknowledgement.  ENOBUFS: the answer was lost.
        """
        seq = self._seq
        self._seq += len(encoders)
        buffer = b"".join([encode(seq + i) for i, encode in enumerate(encoders)])
        if len(buffer) > _SMALL_BYTES:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(buffer))
            except PermissionError as error:
                return error.errno or errno.EPERM
        self._sock.send(buffer)
        code = None
        while True:
            try:
                data = self._sock.recv(_RECV_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return errno.ENOBUFS if code is None else code
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            offset = 0
            while offset < len(data):
                length, kind, _flags, number, _pid = HEADER.unpack_from(data, offset)
                if kind == NLMSG_ERROR and seq <= number < seq + len(encoders):
                    code = code or -_ERRNO.unpack_from(data, offset + 16)[0]
                offset += (length + 3) & ~3

    def dump(
        self,
        kind: int,
        payload: bytes,
        what: str,
        decode: Callable[[bytes], Decoded | None],
        ends: int = 0,
    ) -> list[Decoded]:
        """What ``decode`` makes of the payloads of a dump, see `collect`."""
        return self.collect(kind, payload, what, decode, list, ends)

    def collect(
        self,
        kind: int,
        payload: bytes,
        what: str,
        decode: Callable[[bytes], Decoded | None],
        into: Callable[[Iterator[Decoded]], Collected],
        ends: int = 0,
    ) -> Collected:
        """``into`` of all that ``decode`` makes of the payloads of one consistent dump.

        What it makes nothing of (None) is left out.  Messages are not kept: those of 50,000 flows
        have 20 MiB.  An error ``ends`` is taken for the end of the dump.  A dump that the kernel
        marks as interrupted is read again, at most 8 times.  Raises KernelRefused (``what`` goes
        into the message) for errors and when it never settles.
        """
        for _try in range(DUMP_TRIES):
            made = (decode(m[HEADER.size :]) for m in self.messages(kind, payload, what, ends))
            try:
                return into(one for one in made if one is not None)
            except Interrupted:
                continue
        raise KernelRefused(errno.EINTR, what)

    def messages(self, kind: int, payload: bytes, what: str, ends: int = 0) -> Iterator[bytes]:
        """The messages of one dump with their headers, while they are read.

        Must be read to the end, or the socket be closed.  Raises Interrupted at the end if the
        list is not consistent, KernelRefused as ``dump`` does.
        """
        seq = self._seq
        self._seq += 1
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._sock.send(HEADER.pack(16 + len(payload), kind, flags, seq, 0) + payload)
        interrupted = False
        while True:
            try:
                data = self._sock.recv(_RECV_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                interrupted = True  # something was lost; the kernel ends the dump all the same
                continue
            offset = 0
            while offset < len(data):
                length, answer, flags, number, _pid = HEADER.unpack_from(data, offset)
                if number == seq:
                    interrupted |= bool(flags & NLM_F_DUMP_INTR)
                    if answer in (NLMSG_DONE, NLMSG_ERROR):
                        code = -_ERRNO.unpack_from(data, offset + 16)[0] if length >= 20 else 0
                        if code not in (0, ends):
                            raise KernelRefused(code, what)
                        if interrupted:
                            raise Interrupted
                        return
                    yield data[offset : offset + length]
                offset += (length + 3) & ~3


def set_receive_buffer(sock: socket.socket, size: int) -> None:
    """Ask for ``size`` bytes beyond rmem_max (CAP_NET_ADMIN), or what rmem_max allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
