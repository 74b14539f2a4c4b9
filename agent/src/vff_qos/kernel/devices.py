"""Names and indexes of interfaces, without pyroute2: the follower and gc need no more.

What the kernel says of them is read by rtnetlink.py, which the preflight has in common with us.
"""

from __future__ import annotations

from ..core.settings import Settings
from ..errors import KernelRefused, Refused
from . import rtnetlink
from .rtnetlink import Link


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
