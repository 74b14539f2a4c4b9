"""rtnetlink through pyroute2: for whatever is neither hot nor must start at once.

Importing pyroute2 takes 0.1 s and 17 MiB: only ``bootstrap``, ``remove`` and ``doctor`` come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute, NetlinkError
from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    nlmsg,
)
from pyroute2.netlink.rtnl import RTM_DELQDISC, RTM_NEWQDISC
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ..core.htb import classid
from ..core.layout import mq_handle
from ..core.plan.handles import INGRESS_PARENT, ROOT_PARENT, splitter
from ..errors import KernelRefused
from .packed.qdisc_list import splitter_options, tree_options

CREATE, REPLACE = NLM_F_CREATE | NLM_F_EXCL, NLM_F_CREATE | NLM_F_REPLACE
_CLSACT_HANDLE = 0xFFFF0000


class ChainTcmsg(nlmsg):  # type: ignore[misc]
    """tcmsg with chains, which pyroute2's does not know.  (Not derived from it: a class there uses
    the attributes of its base, once that has been used.)"""

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = (
        (1, "TCA_KIND", "asciiz"),
        (2, "TCA_OPTIONS", "get_options"),
        (11, "TCA_CHAIN", "uint32"),
    )
    get_plugin = tcmsg.get_plugin
    get_options = staticmethod(tcmsg.get_options)


class _RawTcmsg(nlmsg):  # type: ignore[misc]
    """With options as bytes: those of somebody's qdisc, whatever its kind, or packed by us."""

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = ((1, "TCA_KIND", "asciiz"), (2, "TCA_OPTIONS", "cdata | nested"))


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """The kernel's errors as KernelRefused; ``what`` goes into the message."""
    try:
        yield
    except NetlinkError as error:
        raise KernelRefused(error.code, what) from error


def request(ipr: IPRoute, message: nlmsg, kind: int, flags: int, what: str) -> None:
    """Send one message and wait for the acknowledgement; raises KernelRefused."""
    message["header"].update(type=kind, flags=NLM_F_REQUEST | NLM_F_ACK | flags)
    with refusing(what):
        ipr.nlm_request_batch([message])  # `nlm_request` ends in a KeyError in 0.9.7


def put_qdisc(
    ipr: IPRoute,
    index: int,
    kind: str,
    handle: int,
    parent: int,
    options: bytes = b"",
    flags: int = REPLACE,
) -> None:
    """Put a qdisc on interface ``index``, in the place of what is there or (CREATE) only where
    nothing is; ``options`` is the raw TCA_OPTIONS."""
    attrs: list[tuple[str, object]] = [("TCA_KIND", kind)]
    if options:
        attrs.append(("TCA_OPTIONS", options))
    message = _RawTcmsg()
    message.update(index=index, handle=handle, parent=parent, attrs=attrs)
    what = f"adding qdisc {kind} {handle >> 16:x}: to interface {index}"
    request(ipr, message, RTM_NEWQDISC, flags, what)


def put_splitter(ipr: IPRoute, index: int, major: int, split_bytes: int) -> None:
    """Put a TBF that splits packets in the place of whatever root qdisc there is; if it is one,
    change it, and nothing in it is lost."""
    options = splitter_options(split_bytes)
    put_qdisc(ipr, index, "tbf", splitter(major), ROOT_PARENT, options)


def put_mq(ipr: IPRoute, index: int, major: int) -> None:
    """Put the root that several trees are below in the place of whatever root qdisc there is; each
    queue then has the kernel's default."""
    put_qdisc(ipr, index, "mq", mq_handle(major), ROOT_PARENT)


def put_tree(ipr: IPRoute, index: int, major: int, default: int, parent: int = ROOT_PARENT) -> None:
    """Put an HTB below its splitter or into its queue, or in the place of whatever root qdisc there
    is; EINVAL if that has the same handle."""
    put_qdisc(ipr, index, "htb", classid(major, 0), parent, tree_options(default))


def add_clsact(ipr: IPRoute, index: int) -> None:
    """Make the clsact qdisc."""
    put_qdisc(ipr, index, "clsact", _CLSACT_HANDLE, INGRESS_PARENT, flags=CREATE)


def delete_qdisc(ipr: IPRoute, index: int, parent: int, handle: int = 0) -> None:
    """Delete the qdisc at ``parent``, if given only that with ``handle``."""
    message = _RawTcmsg()
    message.update(index=index, handle=handle, parent=parent)
    what = f"removing the qdisc at {parent:x} of interface {index}"
    request(ipr, message, RTM_DELQDISC, 0, what)
