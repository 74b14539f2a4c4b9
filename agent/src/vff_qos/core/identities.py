"""Identities that ports and addresses tell: no word of an engine is needed, nor an agent's time.

``identities.yml`` names *services* (ports of this node: a tunnel of each customer) and *networks*
(source prefixes: offices, peers of a WireGuard).  The kernel marks their flows at the first packet
from maps (core/plan/nft_table.py).  A service is the user ``service:NAME``, a network
``network:NAME``; what they may use the policy says, as of all users.  ``people`` joins them with
identities that engines tell (`core.people`).
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from ..errors import ConfigError
from .document import Document
from .flow import Flow
from .flows.ends import ServiceEnds
from .people import parse_people
from .settings import PortRange, Settings, merge_ranges, parse_ports

SERVICE, NETWORK = "service:", "network:"
KEYS = ("services", "networks", "people")
_SERVICE_KEYS = ("ports", "protocol", "address")
_NETWORK_KEYS = ("prefixes",)
_TCP, _UDP = 6, 17
PROTOCOLS = {"both": (_TCP, _UDP), "tcp": (_TCP,), "udp": (_UDP,)}
_PROTOCOL_NAMES = {_TCP: "tcp", _UDP: "udp"}
#: Names as they stand in commands, without quotes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
#: Each port of an address is an element: such maps are hashes, because the kernel's sets of
#: several ranges (nft_set_pipapo.c) take seconds to fill.
_MOST_OF_ADDRESSES = 65_536
#: Filters of uploads that all services' ports may take: a packet is held against one after the
#: other.
_MOST_RANGES = 8

#: First and last key of an interval, and the mark.
Interval = tuple[int, int, int]


class Service(NamedTuple):
    """Ports of this node that are one identity; ``address``: packed, empty for all of ours."""

    name: str
    ports: tuple[PortRange, ...]
    protocols: tuple[int, ...] = (_TCP, _UDP)
    address: bytes = b""

    @property
    def key(self) -> str:
        """The user's name."""
        return SERVICE + self.name


class Network(NamedTuple):
    """Source prefixes that are one identity: packed address and length in bits."""

    name: str
    prefixes: tuple[tuple[bytes, int], ...]

    @property
    def key(self) -> str:
        """The user's name."""
        return NETWORK + self.name


@dataclass
class MapElements:
    """What the kernel's maps hold."""

    #: Intervals by map: ports by protocol, and networks by the size of their addresses.
    ports: dict[int, list[Interval]] = field(default_factory=lambda: {_TCP: [], _UDP: []})
    networks: dict[int, list[Interval]] = field(default_factory=lambda: {4: [], 16: []})
    #: Address, protocol and port, packed, to the mark; by the size of the address.
    ends: dict[int, dict[bytes, int]] = field(default_factory=lambda: {4: {}, 16: {}})


@dataclass(frozen=True)
class Identities:
    """All of them; no two overlap."""

    services: tuple[Service, ...] = ()
    networks: tuple[Network, ...] = ()
    #: Whose identities are whose: {identity: person}.
    people: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_static(self) -> bool:
        """Whether the kernel has anything to know of."""
        return bool(self.services or self.networks)

    @property
    def keys(self) -> list[str]:
        """The names of services and networks as users, if nobody joins them."""
        return [s.key for s in self.services] + [n.key for n in self.networks]

    def elements(self, marks: Mapping[str, int]) -> MapElements:
        """The maps' elements; whoever has no mark (by the user's name) is left out."""
        found = MapElements()
        for service in self.services:
            mark = marks.get(service.key)
            if mark is None:
                continue
            for protocol, (low, high) in _ranges(service):
                if not service.address:
                    found.ports[protocol].append((low, high, mark))
                    continue
                ends = found.ends[len(service.address)]
                for port in range(low, high + 1):
                    ends[pack_end(service.address, protocol, port)] = mark
        for network in self.networks:
            mark = marks.get(network.key)
            if mark is not None:
                for address, bits in network.prefixes:
                    first, last = _bounds(address, bits)
                    found.networks[len(address)].append((first, last, mark))
        return found

    def cover(self) -> tuple[PortRange, ...]:
        """At most `_MOST_RANGES` ranges that hold all services' ports: what lies between the
        nearest of them is taken in, too."""
        ranges = list(merge_ranges([ports for s in self.services for ports in s.ports]))
        gaps = sorted(range(1, len(ranges)), key=lambda i: ranges[i][0] - ranges[i - 1][1])
        closed = set(gaps[: max(0, len(ranges) - _MOST_RANGES)])
        cover: list[PortRange] = []
        for index, (low, high) in enumerate(ranges):
            if index in closed:
                cover[-1] = (cover[-1][0], high)
            else:
                cover.append((low, high))
        return tuple(cover)


def with_identities(settings: Settings, identities: Identities) -> Settings:
    """Settings that know which objects in the kernel the identities need."""
    return replace(settings, static_ports=identities.cover(), has_static=identities.has_static)


class StaticFlows:
    """Whose a flow is, as the kernel's rules say it."""

    def __init__(self, identities: Identities, marks: Mapping[str, int]) -> None:
        elements = identities.elements(marks)
        self._ends = {**elements.ends[4], **elements.ends[16]}
        self._ports = {proto: _Sorted(found) for proto, found in elements.ports.items()}
        self._networks = {size: _Sorted(found) for size, found in elements.networks.items()}

    def mark(self, flow: Flow, ends: ServiceEnds) -> int:
        """The mark of a flow by its original tuple, 0 for nobody's."""
        if ends.is_ours(flow.dst):
            mark = self._service(flow.dst, flow.proto, flow.dport)
            return mark or (self._network(flow.src) if ends.serves(flow.dport) else 0)
        if ends.is_ours(flow.src):
            # Our side spoke first: conntrack picked the flow up in the middle.
            mark = self._service(flow.src, flow.proto, flow.sport)
            return mark or (self._network(flow.dst) if ends.serves(flow.sport) else 0)
        return self._network(flow.src)

    def _service(self, address: bytes, protocol: int, port: int) -> int:
        mark = self._ends.get(pack_end(address, protocol, port))
        return mark or (self._ports[protocol].find(port) if protocol in self._ports else 0)

    def _network(self, address: bytes) -> int:
        return self._networks[len(address)].find(int.from_bytes(address, "big"))


class _Sorted:
    """Intervals that do not overlap."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        self._all = sorted(intervals)
        self._lows = [low for low, _high, _mark in self._all]

    def find(self, key: int) -> int:
        place = bisect_right(self._lows, key) - 1
        if place < 0:
            return 0
        _low, high, mark = self._all[place]
        return mark if key <= high else 0


def pack_end(address: bytes, protocol: int, port: int) -> bytes:
    """Address, protocol and port as a concatenation of nft has them: each in whole words."""
    return b"%b%c\0\0\0%b\0\0" % (address, protocol, port.to_bytes(2, "big"))


# -- the file -------------------------------------------------------------------------------------


def parse_identities(
    text: bytes,
    where: str,
    service_ports: tuple[PortRange, ...] = (),
    prefixes: Mapping[str, str] | None = None,
) -> Identities:
    """Identities from the text of a file; ConfigError names file, line, key and what is allowed.

    ``service_ports`` are the settings': what comes there is whose the engine says.  ``prefixes``:
    how names of the settings' sources begin (`settings.name_prefixes`).
    """
    doc = Document(text, where)
    data = doc.check_keys((), doc.data, KEYS)
    services = tuple(
        _service(doc, name, entry) for name, entry in _entries(doc, data, "services", SERVICE)
    )
    networks = tuple(
        _network(doc, name, entry) for name, entry in _entries(doc, data, "networks", NETWORK)
    )
    _refuse_shared_ports(doc, services, service_ports)
    _refuse_shared_prefixes(doc, networks)
    found = Identities(services, networks)
    people = parse_people(doc, data.get("people", {}), frozenset(found.keys), prefixes or {})
    return replace(found, people=people)


def _entries(
    doc: Document, data: dict[str, Any], key: str, prefix: str
) -> Iterator[tuple[str, Any]]:
    entries = data.get(key, {})
    if not isinstance(entries, dict):
        raise doc.fail((key,), "must be a mapping of names to what they are")
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise doc.fail(
                (key, name),
                f"{name!r} is not a name: letters, digits and ._@+-, 64 at most "
                f"(the user is {prefix}NAME)",
            )
        yield name, entry


def _service(doc: Document, name: str, entry: Any) -> Service:
    path = ("services", name)
    data = doc.check_keys(path, entry, _SERVICE_KEYS)
    if "ports" not in data:
        raise doc.fail(path, "needs ports, a list of ports and ranges")
    ports = parse_ports(doc, (*path, "ports"), data["ports"])
    protocol = data.get("protocol", "both")
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise doc.fail(
            (*path, "protocol"), f"{protocol!r} is not one of {', '.join(sorted(PROTOCOLS))}"
        )
    address = b""
    if "address" in data:
        try:
            address = ipaddress.ip_address(str(data["address"])).packed
        except ValueError as error:
            raise doc.fail(
                (*path, "address"), f"{data['address']!r} is not an IPv4 or IPv6 address"
            ) from error
    return Service(name, ports, PROTOCOLS[protocol], address)


def _network(doc: Document, name: str, entry: Any) -> Network:
    path = ("networks", name)
    data = doc.check_keys(path, entry, _NETWORK_KEYS)
    if "prefixes" not in data:
        raise doc.fail(path, "needs prefixes, a list such as ['203.0.113.0/24']")
    prefixes = data["prefixes"]
    if not isinstance(prefixes, list) or not prefixes:
        raise doc.fail((*path, "prefixes"), "must be a list of prefixes such as '203.0.113.0/24'")
    found = []
    for index, text in enumerate(prefixes):
        try:
            prefix = ipaddress.ip_network(str(text))
        except ValueError as error:
            raise doc.fail(
                (*path, "prefixes", str(index)), f"{text!r} is not a prefix: {error}"
            ) from error
        if not prefix.prefixlen:
            raise doc.fail((*path, "prefixes", str(index)), f"{text!r} would be everybody")
        found.append((prefix.network_address.packed, prefix.prefixlen))
    return Network(name, tuple(found))


def _ranges(service: Service) -> list[tuple[int, PortRange]]:
    return [(protocol, ports) for protocol in service.protocols for ports in service.ports]


def _bounds(address: bytes, bits: int) -> tuple[int, int]:
    """The first and the last address of a prefix, as numbers."""
    first = int.from_bytes(address, "big")
    return first, first | (1 << 8 * len(address) - bits) - 1


class _Taken(NamedTuple):
    """An interval and whose it is."""

    low: int
    high: int
    name: str


def _refuse_shared_ports(
    doc: Document, services: Collection[Service], service_ports: tuple[PortRange, ...]
) -> None:
    """No port is two services', nor one of the engine's."""
    everywhere: dict[int, list[_Taken]] = {_TCP: [], _UDP: []}
    somewhere: dict[tuple[int, bytes], list[_Taken]] = {}
    size = 0
    for service in services:
        for protocol, (low, high) in _ranges(service):
            taken = _Taken(low, high, service.name)
            if service.address:
                somewhere.setdefault((protocol, service.address), []).append(taken)
                size += high - low + 1
            else:
                everywhere[protocol].append(taken)
            for first, last in service_ports:
                if low <= last and first <= high:
                    raise _shared(doc, service.name, protocol, max(low, first), "service_ports")
    if size > _MOST_OF_ADDRESSES:
        raise doc.fail(
            ("services",),
            f"those with an address have {size} ports together, {_MOST_OF_ADDRESSES} are possible",
        )
    for protocol, all_of_ours in everywhere.items():
        _refuse_overlap(doc, protocol, all_of_ours)
    for (protocol, _address), of_one in somewhere.items():
        _refuse_overlap(doc, protocol, of_one)
        lows = [taken.low for taken in everywhere[protocol]]
        for taken in of_one:
            place = bisect_right(lows, taken.high) - 1
            if place >= 0 and (other := everywhere[protocol][place]).high >= taken.low:
                port = max(other.low, taken.low)
                raise _shared(doc, taken.name, protocol, port, f"service {other.name!r}")


def _refuse_overlap(doc: Document, protocol: int, taken: list[_Taken]) -> None:
    """Also sorts them."""
    taken.sort()
    for one, next_ in pairwise(taken):
        if next_.low <= one.high:
            raise _shared(doc, next_.name, protocol, next_.low, f"service {one.name!r}")


def _shared(doc: Document, name: str, protocol: int, port: int, other: str) -> ConfigError:
    return doc.fail(
        ("services", name),
        f"service {name!r} and {other} both have {_PROTOCOL_NAMES[protocol]} port {port}",
    )


def _refuse_shared_prefixes(doc: Document, networks: Collection[Network]) -> None:
    for size in (4, 16):
        taken = sorted(
            _Taken(*_bounds(address, bits), network.name)
            for network in networks
            for address, bits in network.prefixes
            if len(address) == size
        )
        for one, next_ in pairwise(taken):
            if next_.low <= one.high:
                address = ipaddress.ip_address(next_.low.to_bytes(size, "big"))
                raise doc.fail(
                    ("networks", next_.name),
                    f"network {next_.name!r} and network {one.name!r} both have {address}",
                )
