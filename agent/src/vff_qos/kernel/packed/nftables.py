"""Our nft table as a whole: nf_tables packed by hand, so that it can be found and deleted without
libnftables' Python module.

Source of the numbers: include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

from ...core.plan.nft_table import TABLE
from ...errors import KernelRefused
from .netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    Encoder,
    Netlink,
    attr,
    attrs,
)

_BATCH_BEGIN, _BATCH_END = 16, 17
_GETTABLE, _DELTABLE = 10 << 8 | 1, 10 << 8 | 2
_TABLE_NAME, _TABLE_FLAGS = 1, 2
NFGENMSG = struct.Struct(">BBH")  # family, version, res_id
_SUBSYS_NFTABLES, NFPROTO_INET = 10, 1


def encode(seq: int, kind: int, flags: int, *attributes: bytes) -> bytes:
    """A request about something of family inet."""
    body = NFGENMSG.pack(NFPROTO_INET, 0, 0) + b"".join(attributes)
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, seq, 0) + body


def transact(netlink: Netlink, requests: Sequence[Encoder], what: str) -> None:
    """Have the kernel do all requests or none; raises KernelRefused."""
    code = netlink.transact([_edge(_BATCH_BEGIN), *requests, _edge(_BATCH_END)])
    if code:
        raise KernelRefused(code, what)


def _edge(kind: int) -> Encoder:
    body = NFGENMSG.pack(0, 0, _SUBSYS_NFTABLES)
    return lambda seq: HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, seq, 0) + body


def _name(table: str) -> bytes:
    return attr(_TABLE_NAME, table.encode() + b"\0")


def table_flags(table: str = TABLE) -> int | None:
    """Flags of a table of family inet; None if there is no such table."""
    netlink = Netlink(NETLINK_NETFILTER)
    try:
        errors, replies = netlink.batch([lambda seq: encode(seq, _GETTABLE, 0, _name(table))])
    finally:
        netlink.close()
    if errors.get(0) == errno.ENOENT:
        return None
    if errors:
        raise KernelRefused(errors[0], f"reading nft table inet {table}")
    payload = replies[0].payload
    found = {number: payload[a:b] for number, a, b in attrs(payload, NFGENMSG.size)}
    return int.from_bytes(found.get(_TABLE_FLAGS, b""), "big")


def delete_table(table: str = TABLE) -> None:
    """Delete a table of family inet with all that is in it; no error if it is gone."""
    netlink = Netlink(NETLINK_NETFILTER)
    try:
        delete: Encoder = lambda seq: encode(seq, _DELTABLE, NLM_F_ACK, _name(table))  # noqa: E731
        transact(netlink, [delete], f"removing nft table inet {table}")
    except KernelRefused as error:
        if error.code != errno.ENOENT:
            raise
    finally:
        netlink.close()
