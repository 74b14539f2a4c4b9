"""Elements of our nft maps and sets: packed by hand, because libnftables costs the agent memory.

Source of the numbers: include/uapi/linux/netfilter/nf_tables.h.  Maps and sets themselves are
bootstrap's (core/plan/nft_table.py).  Keys of early shaping and the flood guard are packed
addresses, an IPv6 one only its upper eight bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterable, Mapping

from ...core.identities import Interval, MapElements
from ...core.plan.nft_table import (
    CUT,
    EARLY4,
    EARLY6,
    ENDS4,
    ENDS6,
    FLOOD4,
    FLOOD6,
    FLOOD_BURST,
    FLOOD_PER_S,
    NETWORKS4,
    NETWORKS6,
    STATIC_MAPS,
    TABLE,
    TCP_PORTS,
    UDP_PORTS,
)
from ...core.plan.quic_rules import ID_SETS, QUIC
from ...errors import KernelRefused
from .netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    Encoder,
    Netlink,
    attr,
    attrs,
    find_attr,
    nest,
)
from .nftables import NFGENMSG, NFPROTO_INET, encode, transact

_NEWSETELEM, _GETSETELEM, _DELSETELEM = 10 << 8 | 12, 10 << 8 | 13, 10 << 8 | 14
_DELRULE, _RULE_CHAIN = 10 << 8 | 8, 2
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _ELEM_KEY, _ELEM_DATA, _ELEM_EXPR, _DATA_VALUE = 1, 1, 2, 7, 1
_ELEM_FLAGS, _INTERVAL_END = 3, 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_FLAGS = 1, 2, 3, 5
_LIMIT_F_INV = 1  # matches what is above the limit
_BE32, _BE64 = struct.Struct(">I"), struct.Struct(">Q")
# In the kernel a mark is a number of the machine's own byte order.
_MARK = struct.Struct("=I")
_TCP, _UDP = 6, 17
#: Elements of one message: the length of an attribute has 16 bits.
_PER_MESSAGE = 512
#: Messages of one transaction: they must fit into the socket's send buffer.
_MESSAGES = 4


def mark_of(mark: int) -> bytes:
    """What an element of a map from addresses to marks has beside its key."""
    return nest(_ELEM_DATA, attr(_DATA_VALUE, _MARK.pack(mark)))


def limit_of(per_s: int, burst: int) -> bytes:
    """What an element of a set has beside its key, so that a rule finds it only above a limit.

    Each element counts for itself (nft_set_elem_update_expr, kernel 5.7).  It bears the limit of
    its set: kernels before 5.16 do not give it that by themselves.
    """
    data = attr(_LIMIT_RATE, _BE64.pack(per_s)) + attr(_LIMIT_UNIT, _BE64.pack(1))
    data += attr(_LIMIT_BURST, _BE32.pack(burst)) + attr(_LIMIT_FLAGS, _BE32.pack(_LIMIT_F_INV))
    return nest(_ELEM_EXPR, attr(_EXPR_NAME, b"limit\0"), nest(_EXPR_DATA, data))


_PACED = limit_of(FLOOD_PER_S, FLOOD_BURST)


def set_name(name: str) -> bytes:
    """The attributes that name one of our sets or maps."""
    return attr(_LIST_TABLE, TABLE.encode() + b"\0") + attr(_LIST_SET, name.encode() + b"\0")


def encode_elements(
    seq: int, name: str, values: Mapping[bytes, bytes] | None, delete: bool = False
) -> bytes:
    """Request to add elements to ``name``, or to delete them (None: all there are); values are
    what `mark_of` or `limit_of` gave."""
    if values is None:
        return _encode(seq, name, None, delete)
    elements = [
        _element(key if len(key) == 4 else key + bytes(8), b"" if delete else value)
        for key, value in values.items()
    ]
    return _encode(seq, name, elements, delete)


def _element(key: bytes, value: bytes) -> bytes:
    return nest(_LIST_ELEM, nest(_ELEM_KEY, attr(_DATA_VALUE, key)) + value)


def _encode(seq: int, name: str, elements: list[bytes] | None, delete: bool = False) -> bytes:
    """Request about packed elements; None: all there are."""
    body = set_name(name)
    if elements is not None:
        body += nest(_LIST_ELEMENTS, *elements)
    kind, flags = (_DELSETELEM, 0) if delete else (_NEWSETELEM, NLM_F_CREATE)
    return encode(seq, kind, flags | NLM_F_ACK, body)


def decode_keys(payload: bytes) -> list[bytes]:
    """Keys of the elements in one message of a dump."""
    start, end = find_attr(payload, _LIST_ELEMENTS, NFGENMSG.size, len(payload))
    keys = []
    for _kind, first, last in attrs(payload, start, end):
        key, key_end = find_attr(payload, _ELEM_KEY, first, last)
        data, data_end = find_attr(payload, _DATA_VALUE, key, key_end)
        keys.append(payload[data:data_end])
    return keys


class Elements:
    """The elements of a pair of maps or sets.  Every method raises KernelRefused; ENOENT: no such
    map, or no such element."""

    #: By the size of the keys.
    _names: Mapping[int, str]

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def _change(self, values: Mapping[bytes, bytes], gone: Iterable[bytes]) -> None:
        """Delete ``gone``, add ``values``; what is there keeps its timeout."""
        self._transact(
            [*self._requests(dict.fromkeys(gone, b""), True), *self._requests(values, False)]
        )

    def _replace(self, values: Mapping[bytes, bytes]) -> None:
        """Have ``values`` and nothing else; what stays gets its whole timeout again."""
        flush: list[Encoder] = [
            lambda seq, n=name: encode_elements(seq, n, None, True)  # type: ignore[misc]
            for name in self._names.values()
        ]
        self._transact([*flush, *self._requests(values, False)])

    def clear(self) -> None:
        """Leave no element; no error where there are no maps or sets."""
        try:
            self._replace({})
        except KernelRefused as error:
            if error.code != errno.ENOENT:
                raise

    def _requests(self, values: Mapping[bytes, bytes], delete: bool) -> list[Encoder]:
        requests: list[Encoder] = []
        for size, name in self._names.items():
            items = [item for item in values.items() if len(item[0]) == size]
            for start in range(0, len(items), _PER_MESSAGE):
                part = dict(items[start : start + _PER_MESSAGE])
                requests.append(
                    lambda seq, n=name, p=part: encode_elements(seq, n, p, delete)  # type: ignore[misc]
                )
        return requests

    def _transact(self, requests: list[Encoder]) -> None:
        """The kernel does all of some 2,000 elements or nothing of them."""
        what = f"changing {' and '.join(self._names.values())} of nft table inet {TABLE}"
        for start in range(0, len(requests), _MESSAGES):
            transact(self._netlink, requests[start : start + _MESSAGES], what)


class EarlyMaps(Elements):
    """The maps from addresses to the marks of their next connections."""

    _names = {4: EARLY4, 8: EARLY6}  # noqa: RUF012

    def change(self, marks: Mapping[bytes, int], gone: Iterable[bytes]) -> None:
        """Delete ``gone``, add ``marks``: all or nothing, if they are not thousands."""
        self._change({key: mark_of(mark) for key, mark in marks.items()}, gone)

    def replace(self, marks: Mapping[bytes, int]) -> None:
        """Have ``marks`` and nothing else in the maps; what stays gets its whole timeout again."""
        self._replace({key: mark_of(mark) for key, mark in marks.items()})


class FloodSets(Elements):
    """The sets of addresses whose new connections are paced."""

    _names = {4: FLOOD4, 8: FLOOD6}  # noqa: RUF012

    def pace(self, addresses: Collection[bytes], gone: Iterable[bytes] = ()) -> None:
        """Let each of ``addresses`` have FLOOD_PER_S new connections a second, for FLOOD_TIMEOUT_S
        and not longer; end that of ``gone``.  Where one is paced already, its time goes on.
        ENFILE: the sets are full."""
        self._change(dict.fromkeys(addresses, _PACED), gone)


class CutSet(Elements):
    """The set of the marks of users who are cut off."""

    _names = {4: CUT}  # noqa: RUF012

    def change(self, marks: Iterable[int], gone: Iterable[int]) -> None:
        """Delete ``gone``, add ``marks``."""
        self._change(dict.fromkeys(map(_MARK.pack, marks), b""), map(_MARK.pack, gone))

    def marks(self) -> set[int]:
        """Those that are in the set."""
        body = NFGENMSG.pack(NFPROTO_INET, 0, 0) + set_name(CUT)
        what = f"reading set {CUT} of nft table inet {TABLE}"
        lists = self._netlink.dump(_GETSETELEM, body, what, decode_keys)
        return {_MARK.unpack(key)[0] for keys in lists for key in keys}


class QuicIds:
    """What the kernel has learned of connections that move (core/plan/quic_rules.py)."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def clear(self) -> None:
        """Forget all of it; no error where there are no such sets.  Raises KernelRefused."""
        self._transact([])

    def stop(self) -> None:
        """Let no packet be looked at any more, until the table is made anew."""
        chain = attr(_LIST_TABLE, TABLE.encode() + b"\0") + attr(_RULE_CHAIN, QUIC.encode() + b"\0")
        self._transact([lambda seq: encode(seq, _DELRULE, NLM_F_ACK, chain)])

    def _transact(self, first: list[Encoder]) -> None:
        flush: list[Encoder] = [
            lambda seq, n=name: _encode(seq, n, None, True)  # type: ignore[misc]
            for name in ID_SETS
        ]
        try:
            transact(self._netlink, [*first, *flush], f"emptying the sets of QUIC IDs of {TABLE}")
        except KernelRefused as error:
            if error.code != errno.ENOENT:
                raise


class StaticMaps:
    """The maps of static identities, see `core.identities`.

    Every method raises KernelRefused; ENOENT: no such map.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def replace(self, elements: MapElements) -> None:
        """Have these elements and nothing else, in one transaction: packets see the maps as they
        were or as they are then."""
        parts: list[tuple[str, list[bytes]]] = [
            (name, _interval_elements(elements.ports[proto], 2))
            for name, proto in ((TCP_PORTS, _TCP), (UDP_PORTS, _UDP))
        ]
        parts += [
            (name, _interval_elements(elements.networks[size], size))
            for name, size in ((NETWORKS4, 4), (NETWORKS6, 16))
        ]
        parts += [
            (name, [_element(key, mark_of(mark)) for key, mark in elements.ends[size].items()])
            for name, size in ((ENDS4, 4), (ENDS6, 16))
        ]
        requests: list[Encoder] = [
            lambda seq, n=name: _encode(seq, n, None, True)  # type: ignore[misc]
            for name in STATIC_MAPS
        ]
        for name, packed in parts:
            requests += [
                lambda seq, n=name, e=packed[start : start + _PER_MESSAGE]: _encode(seq, n, e)  # type: ignore[misc]
                for start in range(0, len(packed), _PER_MESSAGE)
            ]
        transact(
            self._netlink, requests, f"changing the static identities of nft table inet {TABLE}"
        )

    def clear(self) -> None:
        """Leave no element; no error where there are no maps."""
        try:
            self.replace(MapElements())
        except KernelRefused as error:
            if error.code != errno.ENOENT:
                raise


def _interval_elements(intervals: Iterable[Interval], size: int) -> list[bytes]:
    """Intervals as the kernel has them (nft_set_rbtree.c): each begins with its first key, which
    bears the mark, and ends before another one."""
    found: list[bytes] = []
    for low, high, mark in sorted(intervals):
        found.append(_element(low.to_bytes(size, "big"), mark_of(mark)))
        if high + 1 < 1 << 8 * size:
            end = attr(_ELEM_FLAGS, _BE32.pack(_INTERVAL_END))
            found.append(_element((high + 1).to_bytes(size, "big"), end))
    return found


def clear_elements(*kinds: type[Elements] | type[QuicIds] | type[StaticMaps]) -> None:
    """Leave no element of these kinds; no error where there is no table."""
    for kind in kinds:
        elements = kind()
        try:
            elements.clear()
        finally:
            elements.close()
