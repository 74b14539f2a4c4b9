"""Elements of our nft maps: nf_tables packed by hand, because libnftables costs the agent memory.

Source of the numbers: include/uapi/linux/netfilter/nf_tables.h.  The maps themselves are
bootstrap's (core/plan/nft_table.py).  Keys are packed addresses, an IPv6 one only its upper eight
bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping

from ...core.plan.nft_table import EARLY4, EARLY6, TABLE
from ...errors import KernelRefused
from .netlink import NETLINK_NETFILTER, NLM_F_ACK, NLM_F_CREATE, Encoder, Netlink, attr, nest
from .nftables import encode, transact

_NEWSETELEM, _DELSETELEM = 10 << 8 | 12, 10 << 8 | 14
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _ELEM_KEY, _ELEM_DATA, _DATA_VALUE = 1, 1, 2, 1
# In the kernel a mark is a number of the machine's own byte order.
_MARK = struct.Struct("=I")
#: Elements of one transaction: its messages must fit into the socket's send buffer.
_CHUNK = 1_024
_MAPS = {4: EARLY4, 8: EARLY6}


def encode_elements(
    seq: int, name: str, marks: Mapping[bytes, int] | None, delete: bool = False
) -> bytes:
    """Request to add elements to map ``name``, or to delete them (None: all there are)."""
    body = attr(_LIST_TABLE, TABLE.encode() + b"\0") + attr(_LIST_SET, name.encode() + b"\0")
    if marks is not None:
        elements = []
        for key, mark in marks.items():
            padded = key if len(key) == 4 else key + bytes(8)
            element = nest(_ELEM_KEY, attr(_DATA_VALUE, padded))
            if not delete:
                element += nest(_ELEM_DATA, attr(_DATA_VALUE, _MARK.pack(mark)))
            elements.append(nest(_LIST_ELEM, element))
        body += nest(_LIST_ELEMENTS, *elements)
    kind, flags = (_DELSETELEM, 0) if delete else (_NEWSETELEM, NLM_F_CREATE)
    return encode(seq, kind, flags | NLM_F_ACK, body)


class EarlyMaps:
    """The maps from addresses to marks.  Every method raises KernelRefused; ENOENT: no such map,
    or no such element."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def change(self, marks: Mapping[bytes, int], gone: Iterable[bytes]) -> None:
        """Delete ``gone``, add ``marks``; the kernel does all of it or nothing."""
        self._transact(
            [*self._requests(dict.fromkeys(gone, 0), True), *self._requests(marks, False)]
        )

    def replace(self, marks: Mapping[bytes, int]) -> None:
        """Have ``marks`` and nothing else in the maps; what stays gets its whole timeout again."""
        keys = list(marks)
        first = {key: marks[key] for key in keys[:_CHUNK]}
        flush: list[Encoder] = [
            lambda seq, n=name: encode_elements(seq, n, None, True)  # type: ignore[misc]
            for name in _MAPS.values()
        ]
        self._transact([*flush, *self._requests(first, False)])
        for start in range(_CHUNK, len(keys), _CHUNK):
            part = {key: marks[key] for key in keys[start : start + _CHUNK]}
            self._transact(self._requests(part, False))

    def clear(self) -> None:
        """Leave no element; no error where there are no maps."""
        try:
            self.replace({})
        except KernelRefused as error:
            if error.code != errno.ENOENT:
                raise

    def _requests(self, marks: Mapping[bytes, int], delete: bool) -> list[Encoder]:
        requests: list[Encoder] = []
        for size, name in _MAPS.items():
            part = {key: mark for key, mark in marks.items() if len(key) == size}
            if part:
                requests.append(
                    lambda seq, n=name, p=part: encode_elements(seq, n, p, delete)  # type: ignore[misc]
                )
        return requests

    def _transact(self, requests: list[Encoder]) -> None:
        if requests:
            transact(self._netlink, requests, f"changing the maps of nft table inet {TABLE}")


def clear_early_maps() -> None:
    """Have nobody's connections marked in advance; no error where there are no maps."""
    maps = EarlyMaps()
    try:
        maps.clear()
    finally:
        maps.close()
