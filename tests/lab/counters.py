"""Kernel counters of a namespace by raw netlink: no process per reading.

Layouts are those of linux/rtnetlink.h, linux/inet_diag.h, linux/tcp.h and nf_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 0, 4, 12
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSG = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")

RTM_GETQDISC = 38
TCMSG = struct.Struct("=BxxxiIII")
TC_H_ROOT = 0xFFFFFFFF
TCA_STATS2, TCA_STATS_BASIC = 7, 1

SOCK_DIAG_BY_FAMILY, INET_DIAG_INFO = 20, 2
DIAG_MSG = 72  # bytes of struct inet_diag_msg
LIVE_STATES = 0b1_1111_0010  # established, the closing ones; neither listening nor waiting
TCPI_SND_MSS, TCPI_TOTAL_RETRANS, TCPI_BYTES_ACKED = 16, 100, 120

NFT_MSG_GETOBJ, NFTABLES_GETOBJ = 19, (10 << 8) | 19
NFPROTO_INET = 1
NFTA_OBJ_NAME, NFTA_OBJ_DATA = 2, 4

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str) -> None:
    """Move this thread into a network namespace, given as a path (/proc/PID/ns/net)."""
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in another network namespace for the length of a block."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            _setns(own)
    finally:
        os.close(own)


def _setns(descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "setns")


class Netlink:
    """A netlink socket that stays in the namespace it was opened in."""

    def __init__(self, protocol: int, namespace: str) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.bind((0, 0))

    def dump(self, kind: int, body: bytes) -> Iterator[memoryview]:
        """Send a dump request; yield the payload of each answer."""
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(NLMSG.pack(NLMSG.size + len(body), kind, flags, 1, 0) + body)
        while True:
            data = memoryview(self._socket.recv(1 << 18))
            while data:
                length, kind_back, *_ = NLMSG.unpack_from(data)
                if kind_back == NLMSG_DONE:
                    return
                if kind_back == NLMSG_ERROR:
                    error = -struct.unpack_from("=i", data, NLMSG.size)[0]
                    raise OSError(error, os.strerror(error), f"netlink dump {kind}")
                yield data[NLMSG.size : length]
                data = data[(length + 3) & ~3 :]


def attributes(data: memoryview) -> dict[int, memoryview]:
    """Split a run of netlink attributes into type -> value."""
    found = {}
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        found[kind & 0x3FFF] = data[ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


class Queues:
    """Bytes that left through the root qdisc of each device of a namespace, as on the wire.

    The qdisc layer counts link-layer bytes and the headers of every segment of a GSO packet.
    """

    def __init__(self, namespace: str) -> None:
        with inside(namespace):
            self._names = dict(socket.if_nameindex())
        self._netlink = Netlink(NETLINK_ROUTE, namespace)

    def read(self) -> dict[str, int]:
        """Device name -> bytes since the qdisc was made."""
        sent = {}
        for message in self._netlink.dump(RTM_GETQDISC, TCMSG.pack(0, 0, 0, 0, 0)):
            _, index, _, parent, _ = TCMSG.unpack_from(message)
            if parent == TC_H_ROOT and index in self._names:
                stats = attributes(attributes(message[TCMSG.size :])[TCA_STATS2])
                sent[self._names[index]] = struct.unpack_from("=Q", stats[TCA_STATS_BASIC])[0]
        return sent


class Connection(NamedTuple):
    """Counters of one TCP socket. Acknowledged is also what arrived after a gap (SACK)."""

    cookie: bytes
    local: str
    local_port: int
    peer_port: int
    bytes_acked: int
    bytes_received: int
    segments_out: int  # without repetitions


class Connections:
    """The TCP sockets of a namespace."""

    def __init__(self, namespace: str) -> None:
        self._netlink = Netlink(NETLINK_SOCK_DIAG, namespace)

    def read(self) -> list[Connection]:
        """All live sockets, IPv4 and IPv6; mapped addresses appear as IPv4."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            extensions = 1 << (INET_DIAG_INFO - 1)
            request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, extensions, LIVE_STATES)
            for message in self._netlink.dump(SOCK_DIAG_BY_FAMILY, request):
                connection = self._parse(message)
                if connection:
                    found.append(connection)
        return found

    @staticmethod
    def _parse(message: memoryview) -> Connection | None:
        info = attributes(message[DIAG_MSG:]).get(INET_DIAG_INFO)
        if info is None:  # a socket on its way out has none
            return None
        local_port, peer_port = struct.unpack_from("!HH", message, 4)
        raw = bytes(message[8:24])
        if message[0] == socket.AF_INET:
            local = socket.inet_ntop(socket.AF_INET, raw[:4])
        else:
            local = socket.inet_ntop(socket.AF_INET6, raw).removeprefix("::ffff:")
        segment_size, sacked = struct.unpack_from("=I8xI", info, TCPI_SND_MSS)
        retransmitted = struct.unpack_from("=I", info, TCPI_TOTAL_RETRANS)[0]
        acked, received, segments = struct.unpack_from("=QQI", info, TCPI_BYTES_ACKED)
        return Connection(
            cookie=bytes(message[44:52]),
            local=local,
            local_port=local_port,
            peer_port=peer_port,
            bytes_acked=acked + sacked * segment_size,
            bytes_received=received,
            segments_out=segments - retransmitted,
        )


class NamedCounters:
    """The named nft counters of a namespace's `inet` tables."""

    def __init__(self, namespace: str) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER, namespace)

    def read(self) -> dict[str, tuple[int, int]]:
        """Name -> (packets, bytes from the network header on)."""
        found = {}
        request = struct.pack("!BBH", NFPROTO_INET, 0, 0)
        for message in self._netlink.dump(NFTABLES_GETOBJ, request):
            top = attributes(message[4:])
            data = attributes(top[NFTA_OBJ_DATA])
            name = bytes(top[NFTA_OBJ_NAME]).rstrip(b"\0").decode()
            size, packets = (struct.unpack("!Q", data[kind])[0] for kind in (1, 2))
            found[name] = (packets, size)
        return found
