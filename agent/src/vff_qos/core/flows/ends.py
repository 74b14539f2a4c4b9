"""Flows as the client sees them: which end of a conntrack tuple is ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..settings import PortRange, merge_ranges

#: ::ffff:0:0/96, RFC 4291 section 2.5.5.2.
MAPPED = bytes(10) + b"\xff\xff"
_UNSPECIFIED = {bytes(4), bytes(16)}


class FlowSeen(NamedTuple):
    """One conntrack event or one dumped entry, seen from the client.

    Addresses are packed, ports big endian; an IPv4-mapped IPv6 address stands as IPv4.
    """

    #: Address and port: 6 or 18 bytes.
    client: bytes
    #: Protocol number, our address and port: 7 or 19 bytes.
    ours: bytes
    #: The conntrack mark, 0 without one.
    mark: int
    #: enum tcp_conntrack; 0 for UDP, and where the message has none.  A flow that begins has 1
    #: (SYN_SENT) if it began with a SYN, 3 (ESTABLISHED) if conntrack picked it up later.
    tcp_state: int
    #: Nanoseconds of CLOCK_REALTIME when the flow began, 0 where the kernel does not say (see
    #: net.netfilter.nf_conntrack_timestamp).  The first event may differ by microseconds.
    started_ns: int
    #: An ended flow whose entry somebody deleted by netlink (``conntrack -D``, ``-F``).
    by_request: bool


class ServiceEnds:
    """Our addresses and service ports."""

    def __init__(self, ports: tuple[PortRange, ...], addresses: Iterable[bytes]) -> None:
        """``ports``: ranges with both ends included (empty: all); ``addresses``: packed."""
        #: Sorted and disjoint; empty: all ports.
        self.ports = merge_ranges(list(ports))
        #: No flow has the unspecified address.
        self.addresses = frozenset(map(unmapped, addresses)) - _UNSPECIFIED
        self._loops = any(map(is_loopback, self.addresses))
        self._serves = bytearray((b"\0" if ports else b"\1") * (1 << 16))
        for low, high in self.ports:
            self._serves[low : high + 1] = b"\1" * (high + 1 - low)

    def is_ours(self, address: bytes) -> bool:
        """Whether a packed address is one of this host's."""
        return address in self.addresses or (self._loops and is_loopback(address))

    def serves(self, port: int) -> bool:
        """Whether it is a service port."""
        return bool(self._serves[port])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ServiceEnds):
            return NotImplemented
        return (self.ports, self.addresses) == (other.ports, other.addresses)

    def __hash__(self) -> int:
        return hash((self.ports, self.addresses))

    def orient(
        self, proto: int, src: bytes, sport: bytes, dst: bytes, dport: bytes
    ) -> tuple[bytes, bytes] | None:
        """(client, ours) as in `FlowSeen` of a flow's original tuple, None if it is not ours.

        Ports are two bytes.  The tuple is swapped where our side spoke first: conntrack picked
        the flow up in the middle.  A client of this host that has a service port itself is
        taken for a client.
        """
        src, dst = unmapped(src), unmapped(dst)
        if self.is_ours(dst) and self._serves[dport[0] << 8 | dport[1]]:
            return src + sport, bytes((proto,)) + dst + dport
        if self.is_ours(src) and self._serves[sport[0] << 8 | sport[1]]:
            return dst + dport, bytes((proto,)) + src + sport
        return None


def is_loopback(address: bytes) -> bool:
    """Whether an address is one of 127.0.0.0/8, all of which are a host's own (RFC 1122)."""
    return len(address) == 4 and address[0] == 127


def unmapped(address: bytes) -> bytes:
    """A packed address, as IPv4 if it is an IPv4-mapped one."""
    return address[12:] if len(address) == 16 and address.startswith(MAPPED) else address
