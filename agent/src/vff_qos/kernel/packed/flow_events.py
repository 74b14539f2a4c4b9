"""Conntrack tells which flows begin and end.

Sources: include/uapi/linux/netfilter/nfnetlink_conntrack.h, ``ctnetlink_conntrack_event`` and
``ctnetlink_fill_info`` in net/netfilter/nf_conntrack_netlink.c (6.1, 6.18).

Entries of another conntrack zone are left out: the requests that mark flows name none, so that
they would not find them, and the same tuple may live in several zones.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from ...core.flows.ends import MAPPED, FlowSeen, ServiceEnds, unmapped
from ...errors import KernelRefused
from .flow_filter import flow_filter
from .netlink import (
    DUMP_TRIES,
    NETLINK_NETFILTER,
    Interrupted,
    Netlink,
    attrs,
    set_receive_buffer,
)

#: An event takes 1,280 bytes there, and the kernel doubles this: room for 13,000.
RECEIVE_BUFFER_BYTES = 8 << 20

_CT_GET = 1 << 8 | 1
_NEW, _DELETE = 0, 2  # IPCTNL_MSG_CT_NEW, _DELETE: the low byte of nlmsg_type
_GROUP_NEW, _GROUP_DESTROY = 1, 3  # enum nfnetlink_groups
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_EVENTS_SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_events"

# enum ctattr_type and what is nested in it
_TUPLE_ORIG, _PROTOINFO, _MARK, _ZONE = 1, 4, 8, 18
_TIMESTAMP, _TIMESTAMP_EVENT = 20, 27
_IP, _PROTO, _TUPLE_ZONE = 1, 2, 3
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_TIMESTAMP_START = 1
_NESTS = {
    (_TUPLE_ORIG,),
    (_TUPLE_ORIG, _IP),
    (_TUPLE_ORIG, _PROTO),
    (_PROTOINFO,),
    (_PROTOINFO, _PROTOINFO_TCP),
    (_TIMESTAMP,),
}

# nlmsghdr, nfgenmsg: low byte of the type, port id of whose request was the cause, family
_TYPE_AT, _CAUSE, _FAMILY_AT, _ATTRIBUTES_AT = 4, slice(12, 16), 16, 20
_TCP_UDP = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
#: No message of conntrack is as long: the longest thing in it is a security context (a page).
_MESSAGE_BYTES = 1 << 13
_NOBODY = bytes(4)
#: Skeletons and ends that are kept; there are some 20 and our addresses times ports.
_MAX_LAYOUTS, _MAX_ENDS = 64, 4096
_NOTHING = slice(0, 0)


class Drained(NamedTuple):
    """What one look at the socket has brought."""

    #: (whether the flow begins, the flow), in the kernel's order.
    events: list[tuple[bool, FlowSeen]]
    #: Events were lost.  The queue has been read to its end since, so that a dump from now on
    #: and later events make a whole again.
    lost: bool
    #: The limit was reached: more is waiting.
    more: bool


class _Layout(NamedTuple):
    """Where things are in messages with the same attributes."""

    #: The bytes of all headers, and what they are: a message of equal length with the same ones
    #: is laid out alike.
    mask: int
    headers: int
    #: None of zone 0 with ports.
    usable: bool
    src: slice
    sport: slice
    proto: slice
    dst: slice
    dport: slice
    mark: slice
    tcp_state: int
    started: slice


class FlowEvents:
    """A listening socket for flows that begin (NEW) and end (DESTROY) in this namespace."""

    def __init__(self, ends: ServiceEnds, receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES) -> None:
        """Listen from now on for flows of ``ends``.  Raises KernelRefused."""
        self._decoder = FlowDecoder(ends)
        #: Whether the kernel sorts out what is not ours; otherwise it costs us a look each.
        self.filtered = False
        # Any loss is told of anew once the queue has been empty, and no event takes less room.
        self._read_after_loss = receive_buffer_bytes // 128 + 1
        self._sock = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            NETLINK_NETFILTER,
        )
        try:
            set_receive_buffer(self._sock, receive_buffer_bytes)
            self._attach(ends)
            self._sock.bind((0, 1 << _GROUP_NEW - 1 | 1 << _GROUP_DESTROY - 1))
        except OSError as error:
            self._sock.close()
            raise KernelRefused(error.errno or errno.EIO, "listening to conntrack") from error
        except KernelRefused:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """To be watched for reading."""
        return self._sock.fileno()

    def close(self) -> None:
        """Release the socket."""
        self._sock.close()

    def set_ends(self, ends: ServiceEnds) -> None:
        """Our addresses have changed.  Raises KernelRefused.

        Flows to a new address that began before this need a dump.
        """
        self._attach(ends)
        self._decoder = FlowDecoder(ends)

    def _attach(self, ends: ServiceEnds) -> None:
        """Replace the filter at once or, while there is no room for two of them, by way of none."""
        program = flow_filter(ends)
        self.filtered = program is not None and (
            self._try_attach(program) or (self._detach() and self._try_attach(program))
        )
        if not self.filtered:
            self._detach()

    def _try_attach(self, program: bytes) -> bool:
        """False if net.core.optmem_max has no room for it."""
        code = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise KernelRefused(
                    error.errno or errno.EIO, "filtering conntrack events"
                ) from error
            return False
        return True

    def _detach(self) -> bool:
        """Take the filter off; whether there was one."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise KernelRefused(
                    error.errno or errno.EIO, "filtering conntrack events"
                ) from error
            return False
        return True

    def drain(self, limit: int = 1 << 14) -> Drained:
        """Read what is waiting, at most ``limit`` messages unless some were lost."""
        recv, decode = self._sock.recv, self._decoder.decode
        events: list[tuple[bool, FlowSeen]] = []
        add = events.append
        lost = False
        left = limit
        while left:
            try:
                message = recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return Drained(events, lost, False)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelRefused(
                        error.errno or errno.EIO, "reading conntrack events"
                    ) from error
                # The kernel drops everything from here on until the queue is empty.
                lost = True
                left = self._read_after_loss
                continue
            left -= 1
            try:
                flow = decode(message)
            except ValueError:
                # Whatever it was about, it is lost to us.
                lost = True
                left = self._read_after_loss
                continue
            if flow is not None:
                add((message[_TYPE_AT] == _NEW, flow))
        return Drained(events, lost, True)

    def dump(self) -> Iterator[FlowSeen]:
        """The flows of our ends that conntrack has now, see `dump_flows`."""
        return dump_flows(self._decoder.ends)


def dump_flows(ends: ServiceEnds) -> Iterator[FlowSeen]:
    """The TCP and UDP flows of our ends that conntrack has now.  Raises KernelRefused.

    The table changes while it is read: a flow may come twice, one that begins or ends
    meanwhile may or may not be there, and is known from the events.
    """
    decode = FlowDecoder(ends).decode
    what = "reading the conntrack table"
    request = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    try:
        with closing(Netlink(NETLINK_NETFILTER)) as netlink:
            for _try in range(DUMP_TRIES):
                try:
                    for message in netlink.messages(_CT_GET, request, what):
                        flow = decode(message)
                        if flow is not None:
                            yield flow
                    return
                except Interrupted:
                    continue
    except OSError as error:
        raise KernelRefused(error.errno or errno.EIO, what) from error
    raise KernelRefused(errno.EINTR, what)


class FlowDecoder:
    """From conntrack's messages to flows of our ends.

    Messages have few layouts.  Each is walked once; later ones are compared with it, all headers
    at once, and read at the known places.  That takes 0.8 us.
    """

    def __init__(self, ends: ServiceEnds) -> None:
        self.ends = ends
        self._layouts: dict[int, list[_Layout]] = {}
        self._count = 0
        # Our ends that tuples have named as their destination, by what stands in the message.
        self._known: dict[bytes, bytes] = {}

    def decode(self, message: bytes) -> FlowSeen | None:
        """The flow of one message with its header; None if it is not ours, TCP or UDP, zone 0.

        Raises ValueError for a truncated message.
        """
        number = int.from_bytes(message, "little")
        for layout in self._layouts.get(len(message), ()):
            if number & layout.mask == layout.headers:
                break
        else:
            layout = self._learn(message, number)
        _, _, usable, src, sport, proto, dst, dport, mark, state, started = layout
        if not usable:
            return None
        client = message[src] + message[sport]
        named = message[proto] + message[dst] + message[dport]
        ours = self._known.get(named)
        if ours is None or client.startswith(MAPPED):
            found = self._orient(message, layout, named)
            if found is None:
                return None
            client, ours = found
        return tuple.__new__(
            FlowSeen,
            (
                client,
                ours,
                int.from_bytes(message[mark], "big"),
                message[state] if state else 0,
                int.from_bytes(message[started], "big"),
                message[_TYPE_AT] == _DELETE and message[_CAUSE] != _NOBODY,
            ),
        )

    def _orient(self, message: bytes, layout: _Layout, named: bytes) -> tuple[bytes, bytes] | None:
        proto, dst, dport = named[0], message[layout.dst], message[layout.dport]
        if proto not in _TCP_UDP:
            return None
        found = self.ends.orient(proto, message[layout.src], message[layout.sport], dst, dport)
        if found is not None and found[1] == named[:1] + unmapped(dst) + dport:
            if len(self._known) >= _MAX_ENDS:
                self._known.clear()
            self._known[named] = found[1]
        return found

    def _learn(self, message: bytes, number: int) -> _Layout:
        """Walk a message whose layout is not known."""
        layout = _walk(message, number)
        if self._count >= _MAX_LAYOUTS:
            self._layouts.clear()
            self._count = 0
        self._count += 1
        self._layouts.setdefault(len(message), []).append(layout)
        return layout


def _walk(message: bytes, number: int) -> _Layout:
    length = int.from_bytes(message[:4], "little")
    if length != len(message):
        raise ValueError("truncated conntrack message")
    headers = bytearray(length)
    headers[:6] = b"\xff" * 6  # nlmsg_len, nlmsg_type
    headers[_FAMILY_AT] = 0xFF
    parts: dict[tuple[int, ...], slice] = {}

    def look(start: int, end: int, within: tuple[int, ...]) -> None:
        for kind, at, stop in attrs(message, start, end):
            headers[at - 4 : at] = b"\xff" * 4
            path = (*within, kind)
            parts.setdefault(path, slice(at, stop))
            if path in _NESTS:
                look(at, stop, path)

    look(_ATTRIBUTES_AT, length, ())
    mask = int.from_bytes(headers, "little")
    v6 = message[_FAMILY_AT] == socket.AF_INET6

    def within_tuple(*path: int) -> slice:
        return parts.get((_TUPLE_ORIG, *path), _NOTHING)

    src, dst = within_tuple(_IP, 3 if v6 else 1), within_tuple(_IP, 4 if v6 else 2)
    sport, dport = within_tuple(_PROTO, _PROTO_SPORT), within_tuple(_PROTO, _PROTO_DPORT)
    proto = within_tuple(_PROTO, _PROTO_NUM)
    sizes = [part.stop - part.start for part in (src, sport, proto, dst, dport)]
    address = 16 if v6 else 4
    zoned = (_ZONE,) in parts or (_TUPLE_ORIG, _TUPLE_ZONE) in parts
    started = parts.get((_TIMESTAMP, _TIMESTAMP_START), _NOTHING)
    if started is _NOTHING and message[_TYPE_AT] == _NEW:
        # Newer kernels (6.18) say when an event happened: a NEW one when its flow began.
        started = parts.get((_TIMESTAMP_EVENT,), _NOTHING)
    return _Layout(
        mask,
        number & mask,
        sizes == [address, 2, 1, address, 2] and not zoned,
        src,
        sport,
        proto,
        dst,
        dport,
        parts.get((_MARK,), _NOTHING),
        parts.get((_PROTOINFO, _PROTOINFO_TCP, _TCP_STATE), _NOTHING).start,
        started,
    )


def events_mode() -> int | None:
    """net.netfilter.nf_conntrack_events of this namespace, None if conntrack is not there.

    0: no events, but for flows that a rule of nft gives them (``ct event set``); 1: events for
    all flows; 2: for flows that begin while somebody listens.  Others never send DESTROY.
    """
    try:
        with open(_EVENTS_SYSCTL, encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return None
