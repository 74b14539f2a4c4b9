"""Hear when others touch what is ours: rtnetlink and nftables notifications."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection

from ...core.plan.nft_table import TABLE
from .netlink import HEADER, NETLINK_NETFILTER, attrs, set_receive_buffer

# include/uapi/linux/rtnetlink.h
_RTMGRP_LINK, _RTMGRP_TC = 0x1, 0x8
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_RTMGRP_IPV4_RULE, _RTMGRP_IPV6_RULE = 0x80, 1 << (19 - 1)  # RTNLGRP_IPV6_RULE
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
_NEWRULE, _DELRULE = 32, 33
_TC_KINDS = range(36, 47)
#: Prefixes this short stand for a default route: 0.0.0.0/1 and its other half, 2000::/3.
_DEFAULT_BITS = 7
_LINK_HEAD = struct.Struct("=BxHiII")  # family, type, index, flags, change
_TC_HEAD = struct.Struct("=Bxxxi")  # family, ifindex
_IFNAME, _PROP_LIST, _ALT_IFNAME, _IFF_UP = 3, 52, 53, 1
# include/uapi/linux/netfilter/nfnetlink.h
_NFNLGRP_NFTABLES = 7
_NFNL_SUBSYS_NFTABLES = 10
# enum nf_tables_msg_types: new and deleted tables, chains and rules; elements of maps are ours
_NFT_KINDS = {0, 2, 3, 5, 6, 8}
_NEWGEN = 10 << 8 | 15
_GEN_PROC_PID, _GEN_PROC_NAME = 2, 3
_OUR_TABLE = TABLE.encode() + b"\0"


class Changed:
    """What others may have changed since the last look."""

    def __init__(self) -> None:
        #: Somebody may have changed our links, qdiscs, classes, filters or our table.
        self.kernel = False
        #: The IFB device has gone or is down.
        self.ifb_lost = False
        #: A default route or a rule of policy routing has come or gone.
        self.routes = False
        #: Our addresses have changed.
        self.addresses = False
        #: Who changed our nft table last, as the kernel says: process number and name.
        self.nft_author: tuple[int, str] | None = None


class Monitor:
    """Two listening sockets; ``listen`` drains them."""

    def __init__(self, own_ports: Collection[int], names: Collection[str]) -> None:
        """Changes whose requests came from ``own_ports`` are ours and not worth a look; links
        count if they have one of ``names`` or are watched."""
        self._own = set(own_ports)
        self._names = {name.encode(errors="surrogateescape") for name in names}
        self._ifb = 0
        self._nft_heard = False
        self._devices: tuple[int, ...] = ()
        self._route = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        groups = (
            _RTMGRP_LINK
            | _RTMGRP_TC
            | _RTMGRP_IPV4_IFADDR
            | _RTMGRP_IPV4_ROUTE
            | _RTMGRP_IPV6_IFADDR
            | _RTMGRP_IPV6_ROUTE
            | _RTMGRP_IPV4_RULE
            | _RTMGRP_IPV6_RULE
        )
        self._route.bind((0, groups))
        self._nft = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        self._nft.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        for sock in (self._route, self._nft):
            set_receive_buffer(sock, 1 << 20)

    def watch(self, devices: tuple[int, int]) -> None:
        """Interface indexes of (IFB, WAN)."""
        self._ifb, self._devices = devices[0], devices

    def descriptors(self) -> list[int]:
        """To be watched for reading."""
        return [self._route.fileno(), self._nft.fileno()]

    def close(self) -> None:
        """Release the sockets."""
        self._route.close()
        self._nft.close()

    def listen(self) -> Changed:
        """Read what is there.  A lost message (ENOBUFS) counts as every one but a lost IFB."""
        heard = Changed()
        for sock in (self._route, self._nft):
            while True:
                try:
                    data = sock.recv(1 << 16)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    heard.kernel = heard.routes = heard.addresses = True
                    continue
                self._look(data, heard, sock is self._nft)
        return heard

    def _look(self, data: bytes, heard: Changed, nft: bool) -> None:
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, _flags, _seq, port = HEADER.unpack_from(data, offset)
            start, end = offset + HEADER.size, offset + length
            if nft:
                if kind >> 8 == _NFNL_SUBSYS_NFTABLES and kind & 0xFF in _NFT_KINDS:
                    ours = _OUR_TABLE in data[start:end]
                    heard.kernel |= ours
                    self._nft_heard |= ours
                elif kind == _NEWGEN:
                    # It ends each transaction (nf_tables_gen_notify).
                    if self._nft_heard:
                        heard.nft_author = _author(data, start, end) or heard.nft_author
                    self._nft_heard = False
            elif kind in (_NEWADDR, _DELADDR):
                heard.addresses = True
            elif port in self._own:
                pass
            elif kind in (_NEWLINK, _DELLINK):
                _family, _type, index, flags, _change = _LINK_HEAD.unpack_from(data, start)
                heard.kernel |= index in self._devices or self._is_named(data, start, end)
                if index == self._ifb and (kind == _DELLINK or not flags & _IFF_UP):
                    heard.ifb_lost = True
            elif kind in (_NEWROUTE, _DELROUTE):
                # The second byte is the length of the destination's prefix.
                heard.routes |= data[start + 1] <= _DEFAULT_BITS
            elif kind in (_NEWRULE, _DELRULE):
                heard.routes = True
            elif kind in _TC_KINDS:
                heard.kernel |= _TC_HEAD.unpack_from(data, start)[1] in self._devices
            offset += (length + 3) & ~3

    def _is_named(self, data: bytes, start: int, end: int) -> bool:
        for kind, at, stop in attrs(data, start + _LINK_HEAD.size, end):
            if kind == _IFNAME and data[at:stop].rstrip(b"\0") in self._names:
                return True
            if kind == _PROP_LIST:
                for inner, first, last in attrs(data, at, stop):
                    if inner == _ALT_IFNAME and data[first:last].rstrip(b"\0") in self._names:
                        return True
        return False


def _author(data: bytes, start: int, end: int) -> tuple[int, str] | None:
    """Who made a generation of nftables' rules; None where the kernel does not say."""
    found = {kind: data[at:stop] for kind, at, stop in attrs(data, start + 4, end)}
    if _GEN_PROC_PID not in found:
        return None
    name = found.get(_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="backslashreplace")
    return int.from_bytes(found[_GEN_PROC_PID], "big"), name
