"""From a claim's source to the flow's tuple, without a walk over the conntrack table.

The log names the client's end only.  Our end is one of our addresses and service ports; the
kernel says which by answering a lookup of the whole tuple.  What it confirmed for an inbound's
tag is asked first the next time.
"""

from __future__ import annotations

from collections.abc import Iterable

from .claims.accesslog import TCP, UDP, Source
from .flow import Flow
from .settings import PortRange

#: Above this many combinations the kernel's filtered dump is cheaper than asking for each.
MAX_CANDIDATES = 256
_LEARNED_PER_TAG = 4
_MAX_TAGS = 1_024

_End = tuple[int, bytes, int]  # protocol, our address, our port
_TagKey = tuple[bytes, int, int]  # tag, address length, protocol of the prefix


class Resolver:
    """Candidate tuples of a claim."""

    def __init__(self, ports: tuple[PortRange, ...], addresses: Iterable[bytes]) -> None:
        """``ports``: our service ports (empty: all); ``addresses``: our own, packed."""
        self._ports = ports
        self._addresses: dict[int, list[bytes]] = {4: [], 16: []}
        self._learned: dict[_TagKey, list[_End]] = {}
        self.set_addresses(addresses)

    def set_addresses(self, addresses: Iterable[bytes]) -> None:
        """Our addresses have changed."""
        self._addresses = {4: [], 16: []}
        for address in addresses:
            self._addresses[len(address)].append(address)

    def first(self, source: Source, tag: bytes, local: Source | None = None) -> list[Flow]:
        """Tuples worth asking for at once: what the tag's earlier flows had.

        Before these, ``local``, our own end where the claim names it; but behind DNAT (Docker)
        that is not the flow's original destination.
        """
        ends: list[_End] = []
        if local is not None:
            ends = [(proto, local.address, local.port) for proto in _protos(source)]
        ends += self._learned.get((tag, len(source.address), source.proto), ())
        return [_tuple(source, end) for end in dict.fromkeys(ends)]

    def rest(self, source: Source, tag: bytes) -> list[Flow]:
        """All other tuples the flow may have; empty if there are too many to ask for."""
        if not self.can_ask(source):
            return []
        known = self._learned.get((tag, len(source.address), source.proto), ())
        ends = (
            (proto, address, port)
            for proto in _protos(source)
            for low, high in self._ports
            for port in range(low, high + 1)
            for address in self._ours(source)
        )
        return [_tuple(source, end) for end in ends if end not in known]

    def can_ask(self, source: Source) -> bool:
        """Whether our possible ends are few enough to ask for each."""
        ports = sum(high - low + 1 for low, high in self._ports)
        return bool(ports) and 2 * ports * len(self._ours(source)) <= MAX_CANDIDATES

    def is_ours(self, flow: Flow) -> bool:
        """Whether a flow goes to one of our addresses and service ports."""
        return flow.dst in self._addresses[len(flow.dst)] and (
            not self._ports or any(low <= flow.dport <= high for low, high in self._ports)
        )

    def _ours(self, source: Source) -> list[bytes]:
        """Our addresses that ``source`` can have reached."""
        loopback = _is_loopback(source.address)
        return [
            address
            for address in self._addresses[len(source.address)]
            if _is_loopback(address) == loopback
        ]

    def learn(self, source: Source, tag: bytes, flow: Flow) -> None:
        """The kernel knows ``flow``: remember our end for the tag."""
        key = (tag, len(source.address), source.proto)
        end = (flow.proto, flow.dst, flow.dport)
        ends = self._learned.get(key)
        if ends is None:
            if len(self._learned) >= _MAX_TAGS:
                # Tags come out of text: a stranger must not fill our memory with them.
                self._learned.clear()
            self._learned[key] = [end]
        elif ends[0] != end:
            if end in ends:
                ends.remove(end)
            ends.insert(0, end)
            del ends[_LEARNED_PER_TAG:]


def _protos(source: Source) -> tuple[int, int]:
    """A prefix says what the flow within the tunnel is; outside it is TCP more often than not."""
    return (UDP, TCP) if source.proto == UDP else (TCP, UDP)


def _tuple(source: Source, end: _End) -> Flow:
    proto, address, port = end
    return Flow(proto, source.address, source.port, address, port)


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == b"\0" * 15 + b"\1"
