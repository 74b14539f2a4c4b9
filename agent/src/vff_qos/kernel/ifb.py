"""The device that uploads pass, made and set up through pyroute2."""

from __future__ import annotations

import errno

from pyroute2 import IPRoute, NetlinkError

from ..core.plan.objects import Ifb
from .packed.links import read_links
from .packed.netlink import Netlink
from .route import refusing

_IN6_ADDR_GEN_MODE_NONE = 1
_NO_ADDRESS = {
    "attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE]]}]]
}


def put_ifb(ipr: IPRoute, netlink: Netlink, ifb: Ifb) -> None:
    """Make an IFB device, or finish one that is there, and set it up."""
    before = read_links(netlink)
    if ifb.dev not in before:
        with refusing(f"adding {ifb}"):
            ipr.link("add", ifname=ifb.dev, kind="ifb", num_tx_queues=ifb.queues)
        # Loading the module makes two devices of its own (numifbs=2), which nobody asked for.
        for other, link in read_links(netlink).items():
            if other not in before and other != ifb.dev and link.kind == "ifb" and not link.up:
                delete_link(ipr, other)
    settings = {"index": read_links(netlink)[ifb.dev].ifindex, "ifalias": ifb.alias}
    settings["txqlen"] = ifb.txqlen
    with refusing(f"setting up {ifb}"):
        try:
            # Or it would get a link-local address when it comes up, and solicit routers.
            ipr.link("set", **settings, IFLA_AF_SPEC=_NO_ADDRESS)
        except NetlinkError as error:
            if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                raise
            ipr.link("set", **settings)  # a kernel without IPv6
        ipr.link("set", index=settings["index"], state="up")


def delete_link(ipr: IPRoute, name: str) -> None:
    """Delete an interface."""
    with refusing(f"removing interface {name}"):
        ipr.link("del", ifname=name)
