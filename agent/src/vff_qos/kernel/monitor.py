"""Hear when others touch what is ours: rtnetlink and nftables notifications."""

from __future__ import annotations

import errno
import socket

from .netlink import HEADER, NETLINK_NETFILTER, set_receive_buffer

# include/uapi/linux/rtnetlink.h
_RTMGRP_LINK, _RTMGRP_TC = 0x1, 0x8
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
_TC_KINDS = range(36, 47)
# include/uapi/linux/netfilter/nfnetlink.h
_NFNLGRP_NFTABLES = 7
_NFNL_SUBSYS_NFTABLES = 10
# enum nf_tables_msg_types: the DEL messages of table, chain, rule; NEWTABLE
_NFT_KINDS = {0, 2, 5, 8}


class Heard:
    """What was heard since the last look."""

    def __init__(self) -> None:
        #: Somebody may have changed links, qdiscs, classes, filters or our table.
        self.kernel = False
        #: Our addresses have changed.
        self.addresses = False


class Monitor:
    """Two listening sockets; ``listen`` drains them."""

    def __init__(self, own_ports: tuple[int, ...]) -> None:
        """Changes whose requests came from ``own_ports`` are ours and not worth a look."""
        self._own = set(own_ports)
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
        )
        self._route.bind((0, groups))
        self._nft = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        self._nft.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        for sock in (self._route, self._nft):
            set_receive_buffer(sock, 1 << 20)

    def descriptors(self) -> list[int]:
        """To be watched for reading."""
        return [self._route.fileno(), self._nft.fileno()]

    def close(self) -> None:
        """Release the sockets."""
        self._route.close()
        self._nft.close()

    def listen(self) -> Heard:
        """Read what is there.  A lost message (ENOBUFS) counts as everything."""
        heard = Heard()
        for sock in (self._route, self._nft):
            while True:
                try:
                    data = sock.recv(1 << 16)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    heard.kernel = heard.addresses = True
                    continue
                self._look(data, heard, sock is self._nft)
        return heard

    def _look(self, data: bytes, heard: Heard, nft: bool) -> None:
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, _flags, _seq, port = HEADER.unpack_from(data, offset)
            if nft:
                heard.kernel |= kind >> 8 == _NFNL_SUBSYS_NFTABLES and kind & 0xFF in _NFT_KINDS
            elif kind in (_NEWADDR, _DELADDR):
                heard.addresses = True
            elif port not in self._own and (
                kind in (_NEWLINK, _DELLINK, _NEWROUTE, _DELROUTE) or kind in _TC_KINDS
            ):
                heard.kernel = True
            offset += (length + 3) & ~3
