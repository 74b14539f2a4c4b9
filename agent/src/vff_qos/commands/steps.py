"""Takes the steps of a plan: each thing of ours into the kernel, or out of it.

A step that fails ends the run: what was done stays, and at every step traffic flows (packets are
redirected last, and unredirected first).
"""

from __future__ import annotations

import errno
import socket
from contextlib import closing

from pyroute2 import IPRoute

from ..core.htb import (
    CEIL_MINOR,
    ROOT_MINOR,
    TARGET_US,
    UNCLASSIFIED_MINOR,
    classid,
)
from ..core.layout import mq_handle, shared_leaf_handle
from ..core.plan.diff import Operation
from ..core.plan.handles import INGRESS_PARENT, ROOT_PARENT, queue_parent, splitter
from ..core.plan.kernel_record import SavedRoot
from ..core.plan.objects import (
    Action,
    Clsact,
    CopyMark,
    Filter,
    Ifb,
    KernelObject,
    Mq,
    NftTable,
    Redirect,
    SetMark,
    SetQueue,
    SharedClass,
    SharedLeaf,
    SpreadQueues,
    Sysctl,
    Tree,
)
from ..core.settings import Settings
from ..errors import KernelRefused
from ..kernel import filters, ifb, nft, route
from ..kernel.packed import tc
from ..kernel.packed.nftables import delete_table
from ..kernel.sysctls import write_sysctl

_ACTION_MODULES: dict[type[Action], str] = {
    CopyMark: "act_ctinfo",
    SetMark: "act_skbedit",
    SetQueue: "act_skbedit",
    SpreadQueues: "act_skbedit",
    Redirect: "act_mirred",
}


def carry_out(settings: Settings, operations: list[Operation]) -> list[str]:
    """All steps of a plan; returns what could not be done of restorations.

    Raises KernelRefused, whose message says which steps were done and which not.
    """
    notes: list[str] = []
    with IPRoute() as ipr, closing(tc.Tc()) as classes:
        steps = _Steps(ipr, classes, settings.major)
        for number, step in enumerate(operations):
            try:
                notes += steps.take(step)
            except KernelRefused as error:
                done = "; ".join(map(str, operations[:number])) or "nothing"
                left = "; ".join(map(str, operations[number:]))
                what = f"{_lacking(error.code, step)}{error.what} (done: {done}. Not done: {left})"
                raise KernelRefused(error.code, what) from error
    return notes


def _lacking(code: int, step: Operation) -> str:
    """What a kernel that has never heard of an object lacks; empty if it refused for another
    reason.

    Only here it shows: lists of modules do not tell what is built in or loaded by a host.
    """
    if step.verb != "add" or code not in (errno.ENOENT, errno.EOPNOTSUPP):
        return ""
    match step.target:
        case Ifb():
            modules = ["ifb"]
        case Clsact():
            modules = ["sch_ingress"]
        case Tree():
            modules = ["sch_htb", *(["sch_tbf"] if step.target.split_bytes else [])]
        case SharedLeaf():
            modules = [f"sch_{step.target.kind}"]
        case Filter():
            actions = [_ACTION_MODULES[type(action)] for action in step.target.actions]
            modules = [f"cls_{step.target.classifier}", *actions]
        case _:
            return ""
    return (
        f"the kernel lacks {' or '.join(modules)}, or cannot load it (install the distribution's "
        "full kernel; in a container, have the host load it): "
    )


class _Steps:
    """Takes the steps of a plan; each raises KernelRefused."""

    def __init__(self, ipr: IPRoute, classes: tc.Tc, major: int) -> None:
        self._ipr, self._classes, self._major = ipr, classes, major

    def take(self, step: Operation) -> list[str]:
        """One step; returns what could not be done of a restoration."""
        if isinstance(step.target, SavedRoot):
            return self._restore(step.target)
        if step.verb == "remove":
            self._remove(step.target)
        else:
            self._put(step.target, is_new=step.verb == "add")
        return []

    def _index(self, dev: str) -> int:
        try:
            return socket.if_nametoindex(dev)
        except OSError as error:
            raise KernelRefused(errno.ENODEV, f"interface {dev} vanished") from error

    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in socket.if_nameindex()}

    def _put(self, item: KernelObject, is_new: bool) -> None:
        match item:
            case Ifb():
                ifb.put_ifb(self._ipr, self._classes.netlink, item)
            case NftTable():
                nft.replace_table(item)
            case Mq():
                route.put_mq(self._ipr, self._index(item.dev), item.major)
            case Tree():
                self._put_tree(item, is_new)
            case SharedClass():
                key = tc.ClassKey(self._index(item.dev), item.major, item.minor)
                parent = ROOT_MINOR if item.minor == CEIL_MINOR else CEIL_MINOR
                flags = tc.ADD if is_new else 0
                params = item.params
                self._classes.apply(
                    [(lambda seq: tc.encode_class(seq, key, parent, params, flags), str(item))]
                )
            case SharedLeaf():
                key = tc.ClassKey(self._index(item.dev), item.major, item.minor)
                handle = shared_leaf_handle(item.minor, item.major, item.tree)
                self._classes.apply([tc.add_leaf(key, item.kind, TARGET_US, handle)])
            case Clsact():
                route.add_clsact(self._ipr, self._index(item.dev))
            case Filter():
                self._index(item.place.dev)
                filters.add_filter(self._ipr, item, self._major, self._indices())
            case Sysctl():
                write_sysctl(item)

    def _put_tree(self, tree: Tree, is_new: bool) -> None:
        index = self._index(tree.dev)
        if tree.split_bytes:
            route.put_splitter(self._ipr, index, tree.major, tree.split_bytes)
        if is_new:
            default, parent = tree.default or UNCLASSIFIED_MINOR, ROOT_PARENT
            if tree.split_bytes:
                parent = splitter(tree.major) | 1
            elif tree.queue is not None:
                parent = queue_parent(tree.major)
            route.put_tree(self._ipr, index, tree.major, default, parent)

    def _remove(self, item: KernelObject) -> None:
        match item:
            case Ifb():
                ifb.delete_link(self._ipr, item.dev)
            case NftTable():
                delete_table(item.name)
            case Tree():
                handle = splitter(item.major) if item.split_bytes else classid(item.major, 0)
                at = ROOT_PARENT if item.queue is None else queue_parent(item.major)
                route.delete_qdisc(self._ipr, self._index(item.dev), at, handle)
            case Mq():
                handle = mq_handle(item.major)
                route.delete_qdisc(self._ipr, self._index(item.dev), ROOT_PARENT, handle)
            case SharedClass():
                key = tc.ClassKey(self._index(item.dev), item.major, item.minor)
                self._classes.apply([tc.delete_class(key)])
            case SharedLeaf():
                at = classid(item.major, item.minor)
                route.delete_qdisc(self._ipr, self._index(item.dev), at)
            case Clsact():
                route.delete_qdisc(self._ipr, self._index(item.dev), INGRESS_PARENT)
            case Filter():
                self._index(item.place.dev)
                filters.delete_filter(self._ipr, item, self._major, self._indices())
            case Sysctl():
                raise TypeError("a sysctl is set back, never removed")

    def _restore(self, saved: SavedRoot) -> list[str]:
        notes = []
        index = self._index(saved.dev)
        for kind, handle, parent, options in saved.qdiscs:
            label = f"{kind} {handle >> 16:x}: of {saved.dev}"
            try:
                route.put_qdisc(self._ipr, index, kind, handle, parent, bytes.fromhex(options))
            except KernelRefused as error:
                try:
                    route.put_qdisc(self._ipr, index, kind, handle, parent)
                    notes.append(f"{label} came back with default options ({error})")
                except KernelRefused as again:
                    notes.append(f"{label} could not be restored ({again})")
        return notes
