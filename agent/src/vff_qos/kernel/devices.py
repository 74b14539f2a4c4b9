"""Names and indexes of interfaces, without pyroute2: the follower and gc need no more.

What the kernel says of them is read by rtnetlink.py, which the preflight has in common with us.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from array import array
from itertools import takewhile

from ..core.settings import Settings
from ..errors import KernelRefused, Refused
from . import rtnetlink
from .rtnetlink import Link

# include/uapi/linux/{sockios,ethtool}.h
_SIOCETHTOOL, _ETHTOOL_GCHANNELS = 0x8946, 0x3C
# command; most of rx, tx, other, combined; rx, tx, other, combined in use
_CHANNELS = struct.Struct("=9I")
_IFREQ = struct.Struct("=16sQ16x")


def default_route_device() -> str | None:
    """The device through which an unmarked packet to the Internet leaves; None if none would."""
    link = _ask_for_uplink()
    return link.name if link else None


def wan_link(settings: Settings) -> Link:
    """The WAN device; Refused if there is none, also where ``auto`` finds no default route."""
    if settings.wan != "auto":
        return _find(settings.wan)
    link = _ask_for_uplink()
    if link is None:
        raise Refused(
            "no default route: name the interface in settings.yml (if_wan: NAME); "
            f"there are: {_names()}"
        )
    return link


def shaping_devices(settings: Settings) -> tuple[int, int]:
    """Interface indexes of (IFB, WAN).  Raises Refused."""
    return _find(settings.ifb).ifindex, wan_link(settings).ifindex


def _find(name: str) -> Link:
    """The device with a name or an alternative name; Refused with the names there are."""
    try:
        link = rtnetlink.find_link(name)
    except OSError as error:
        raise KernelRefused(error.errno or 0, f"asking for interface {name}") from error
    if link is None:
        raise Refused(f"interface {name} does not exist; there are: {_names()}")
    return link


def _ask_for_uplink() -> Link | None:
    try:
        return rtnetlink.uplink()
    except OSError as error:
        raise KernelRefused(error.errno or 0, "asking for the default route") from error


def _names() -> str:
    try:
        links = rtnetlink.all_links()
    except OSError as error:
        raise KernelRefused(error.errno or 0, "asking for interfaces") from error
    return ", ".join(sorted(link.name for link in links if link.leads_out)) or "none"


def used_queues(name: str) -> int | None:
    """How many transmit queues a device uses (``ethtool -l``: of their own, and combined ones);
    None if it does not say.

    rtnetlink tells only how many it was made with.
    """
    request = bytearray(_CHANNELS.size)
    _CHANNELS.pack_into(request, 0, _ETHTOOL_GCHANNELS, *[0] * 8)
    buffer = array("B", request)
    asked = _IFREQ.pack(os.fsencode(name)[:15], buffer.buffer_info()[0])
    try:
        # Any socket will do, and our units may open no others.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCETHTOOL, asked)
    except OSError:
        return None  # vanished, or a driver that knows no channels
    *_most, _rx, tx, _other, combined = _CHANNELS.unpack(buffer)
    return tx + combined or None


def kernel_version() -> tuple[int, int]:
    """The first two numbers of the running kernel's version."""
    first, second, *_rest = os.uname().release.split(".")
    return int(first), int("".join(takewhile(str.isdigit, second)))
