"""Interfaces through pyroute2."""

from __future__ import annotations

import errno
import os

from pyroute2 import IPRoute, NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP, ifinfmsg

from ..core.plan.objects import Ifb, Link
from ..errors import KernelRefused
from .route import refusing

_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS
_IN6_ADDR_GEN_MODE_NONE = 1
_NO_ADDRESS = {
    "attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE]]}]]
}
_DUMP_TRIES = 8


def read_links(ipr: IPRoute) -> dict[str, Link]:
    """{name: interface} of this network namespace."""
    what = "reading interfaces"
    for _try in range(_DUMP_TRIES):
        try:
            with refusing(what):
                return dict(map(_decode, ipr.link("dump", ext_mask=_SKIP_STATS)))
        except KernelRefused as error:
            if not isinstance(error.__cause__, NetlinkDumpInterrupted):
                raise
    raise KernelRefused(errno.EINTR, what)


def _text(value: str | bytes | None) -> str:
    # pyroute2 leaves bytes what is not UTF-8.
    return os.fsdecode(value or "")


def _decode(message: ifinfmsg) -> tuple[str, Link]:
    properties = message.get_attr("IFLA_PROP_LIST")
    info = message.get_attr("IFLA_LINKINFO")
    return _text(message.get_attr("IFLA_IFNAME")), Link(
        ifindex=message["index"],
        kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
        alias=_text(message.get_attr("IFLA_IFALIAS")),
        up=bool(message["flags"] & IFF_UP),
        txqlen=message.get_attr("IFLA_TXQLEN") or 0,
        altnames=tuple(map(_text, properties.altnames())) if properties else (),
        mtu=message.get_attr("IFLA_MTU") or 0,
    )


def put_ifb(ipr: IPRoute, ifb: Ifb) -> None:
    """Make an IFB device, or finish one that is there, and set it up."""
    before = read_links(ipr)
    if ifb.dev not in before:
        with refusing(f"adding {ifb}"):
            ipr.link("add", ifname=ifb.dev, kind="ifb", num_tx_queues=1)
        # Loading the module makes two devices of its own (numifbs=2), which nobody asked for.
        for other, link in read_links(ipr).items():
            if other not in before and other != ifb.dev and link.kind == "ifb" and not link.up:
                delete_link(ipr, other)
    settings = {"index": read_links(ipr)[ifb.dev].ifindex, "ifalias": ifb.alias}
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
