"""Names and indexes of interfaces, without pyroute2: the follower and gc need no more."""

from __future__ import annotations

import socket

from ..core.settings import Settings
from ..errors import Refused


def default_route_device() -> str | None:
    """Device of the default route with the lowest metric, IPv4 before IPv6; None without one.

    See proc(5): /proc/net/route, and Documentation/networking for /proc/net/ipv6_route.
    """
    routes: list[tuple[int, int, str]] = []
    with open("/proc/net/route", encoding="ascii") as file:
        for line in list(file)[1:]:
            name, destination, _gateway, flags, _ref, _use, metric, mask = line.split()[:8]
            if destination == mask == "00000000" and int(flags, 16) & 1:
                routes.append((4, int(metric), name))
    try:
        with open("/proc/net/ipv6_route", encoding="ascii") as file:
            for line in file:
                fields = line.split()
                up_not_reject = int(fields[8], 16) & 0x201 == 1
                if (
                    fields[0] == "0" * 32
                    and fields[1] == "00"
                    and up_not_reject
                    and fields[9] != "lo"
                ):
                    routes.append((6, int(fields[5], 16), fields[9]))
    except FileNotFoundError:
        # IPv6 is switched off in this kernel.
        return min(routes)[2] if routes else None
    return min(routes)[2] if routes else None


def wan_device(settings: Settings) -> str:
    """The WAN device by name; Refused if it is ``auto`` and there is no default route."""
    if settings.wan != "auto":
        return settings.wan
    device = default_route_device()
    if device is None:
        raise Refused("no default route: name the interface in settings.yml (wan: eth0)")
    return device


def device_index(name: str) -> int:
    """Index of an interface; Refused with the names there are if it does not exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        names = ", ".join(sorted(other for _index, other in socket.if_nameindex()))
        raise Refused(f"interface {name} does not exist; there are: {names}") from error


def shaping_devices(settings: Settings) -> tuple[int, int]:
    """Interface indexes of (IFB, WAN).  Raises Refused."""
    return device_index(settings.ifb), device_index(wan_device(settings))
