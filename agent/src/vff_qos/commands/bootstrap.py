"""Brings the kernel's objects to what the settings say: observe, plan, apply, verify.

The plan itself is made in core/plan/plan.py.  A step that fails ends the run: what was done
stays, and at every step traffic flows (packets are redirected last, and unredirected first).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing

from pyroute2 import IPRoute

from ..core.htb import (
    CEIL_MINOR,
    MINOR_MASK,
    OURS_MASK,
    PROVISIONAL,
    ROOT_MINOR,
    TARGET_US,
    UNCLASSIFIED_MINOR,
    classid,
    usable_minor,
)
from ..core.old_role import DEFAULT_MINOR as OLD_DEFAULT_MINOR
from ..core.old_role import IFB_MAJOR, WAN_MAJOR, OldRole
from ..core.old_role import TABLE as OLD_TABLE
from ..core.plan import plan as planner
from ..core.plan.desired import SYSCTLS
from ..core.plan.kernel_record import KernelRecord, SavedRoot
from ..core.plan.nft_table import TABLE
from ..core.plan.objects import (
    ALIAS,
    EGRESS,
    INGRESS,
    INGRESS_PARENT,
    ROOT,
    ROOT_PARENT,
    Action,
    Clsact,
    CopyMark,
    Filter,
    Ifb,
    KernelObject,
    NftTable,
    Observed,
    Redirect,
    SetMark,
    SharedClass,
    SharedLeaf,
    Sysctl,
    Tree,
    is_tree,
    splitter,
)
from ..core.plan.plan import Operation, Plan
from ..core.settings import Settings
from ..errors import KernelRefused, QosError
from ..kernel import filters, ifb, nft, route, rtnetlink
from ..kernel.devices import default_route_device
from ..kernel.packed import tc
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.links import read_links
from ..kernel.packed.netlink import Netlink
from ..kernel.packed.nftables import delete_table, table_flags
from ..kernel.packed.qdisc_list import read_qdiscs
from ..kernel.sysctls import read_sysctl, write_sysctl
from ..state import KERNEL_RECORD
from .takeover import Memory, Takeover

_ACTION_MODULES: dict[type[Action], str] = {
    CopyMark: "act_ctinfo",
    SetMark: "act_skbedit",
    Redirect: "act_mirred",
}


def observe(
    settings: Settings,
    record: KernelRecord,
    with_rules: bool = True,
    old: OldRole | None = None,
) -> Observed:
    """What is there now, of ours and what is in our way; with ``old`` what that role left, too.

    Without ``with_rules`` of our nft table only whether it exists: that needs no libnftables.
    """
    with ExitStack() as stack:
        netlink = stack.enter_context(closing(Netlink(socket.NETLINK_ROUTE)))
        classes = stack.enter_context(closing(tc.Tc()))
        found = read_links(netlink)
        names = {link.ifindex: name for name, link in found.items()}
        majors = {settings.major, settings.major if record.major is None else record.major}
        seen = Observed(
            found,
            default_route_device(),
            read_qdiscs(netlink, names, majors),
            nft=nft.read_table() if with_rules else _table_alone(),
            nft_version=nft.version() if with_rules else (),
            sysctls={item.name: read_sysctl(item.name) for item in SYSCTLS},
            old=old,
            has_old_table=old is not None and table_flags(OLD_TABLE) is not None,
        )
        for qdisc in seen.qdiscs:
            index, major = found[qdisc.dev].ifindex, qdisc.handle >> 16
            if old and major in (WAN_MAJOR, IFB_MAJOR) and qdisc.default == OLD_DEFAULT_MINOR:
                seen.old_minors[qdisc.dev] = frozenset(classes.params(index, major))
            if qdisc.parent == INGRESS_PARENT:
                hooks = [INGRESS, EGRESS] if qdisc.kind == "clsact" else [INGRESS]
            elif is_tree(qdisc, majors):
                hooks = [ROOT]
                shared = (CEIL_MINOR, UNCLASSIFIED_MINOR)
                seen.classes[qdisc.dev, major] = classes.shared_classes(index, major, shared)
            else:
                continue
            for hook in hooks:
                seen.filters += filters.read(index, hook, major, majors, names)
        return seen


def _table_alone() -> NftTable | None:
    return None if table_flags() is None else NftTable([{"table": {"name": TABLE}}])


def reconcile(
    settings: Settings, state: Memory, dry_run: bool = False, takeover: Takeover | None = None
) -> list[str]:
    """Bring the kernel to ``settings``; returns one line for each step, none if nothing differs.

    What was there before us is kept in ``state`` before it is replaced, but for what ``takeover``
    knows: nobody wants that back.  With ``dry_run`` nothing is changed and the lines say what would
    be.  Raises Refused (nothing was changed) or KernelRefused (the message says which steps were
    done and which not).
    """
    old = takeover.old if takeover else None

    def plan(record: KernelRecord) -> Plan:
        return planner.present(settings, observe(settings, record, old=old), record)

    return _run(settings, plan, state, dry_run, takeover)


def repair(
    settings: Settings, state: Memory, dry_run: bool = False, takeover: Takeover | None = None
) -> list[str]:
    """As `reconcile`, but a suspension stays, also one that begins meanwhile."""
    lines: list[str] = []
    if not state.get_value("suspended"):
        lines = reconcile(settings, state, dry_run, takeover)
        if not state.get_value("suspended"):
            return lines
    return lines + reconcile(settings.lifted(), state, dry_run, takeover)


def remove(settings: Settings, state: Memory, dry_run: bool = False) -> list[str]:
    """Take every kernel object of ours away and put back what was there; as `reconcile`."""

    def plan(record: KernelRecord) -> Plan:
        return planner.absent(settings, observe(settings, record, with_rules=False), record)

    return _run(settings, plan, state, dry_run)


def _run(
    settings: Settings,
    make: Callable[[KernelRecord], Plan],
    state: Memory,
    dry_run: bool,
    takeover: Takeover | None = None,
) -> list[str]:
    kept = state.get_value(KERNEL_RECORD)
    record = KernelRecord.from_json(kept) if kept else _recorded_by_the_kernel(settings)
    old_major = settings.major if record.major is None else record.major
    plan = make(record)
    lines: list[str] = []
    # What a step brings about is done in a second round: our table loads conntrack, which then
    # has a sysctl.
    for _round in range(1 if dry_run else 2):
        lines += map(str, plan.operations)
        if dry_run:
            break
        if plan.before != record:
            state.set_value(KERNEL_RECORD, plan.before.to_json())
        if takeover:
            takeover.remember_marks(plan.old_marks)
        if plan.operations:
            lines += _apply(settings, plan.operations)
        if takeover:
            lines += takeover.move_marks()
        lines += _move_marks(old_major, settings.major, state)
        if plan.after != plan.before:
            state.set_value(KERNEL_RECORD, plan.after.to_json())
        if not plan.operations:
            break
        record, plan = plan.after, make(plan.after)
    else:
        if plan.operations:
            left = "; ".join(map(str, plan.operations))
            raise QosError(f"after all steps this still differs: {left}")
    # Never alone, or each look at a node that is as it can be would be a change.
    return [*lines, *plan.notes] if lines else []


def _recorded_by_the_kernel(settings: Settings) -> KernelRecord:
    """Where the state is lost: the handle of the tree on our IFB, which has our alias.

    Without it a tree of ours would look like somebody else's after a change of the handle.
    """
    majors = rtnetlink.tree_majors(ALIAS, rtnetlink.all_links(), rtnetlink.top_qdiscs())
    others = sorted(majors - {settings.major})
    return KernelRecord(others[0]) if others else KernelRecord()


def _move_marks(old: int, new: int, state: Memory) -> list[str]:
    """After the handle has changed: open connections keep their users, under the new tag.

    Otherwise they would look like other software's, and be unlimited until they end.  Also done
    for those that wait in the state for the end of a suspension.
    """
    if old == new:
        return []

    def moved(mark: int) -> int:
        minor = mark & MINOR_MASK
        return mark & PROVISIONAL | classid(new, minor) if usable_minor(new, minor) else 0

    if waiting := state.get_value("suspended"):
        for flow in waiting["flows"]:
            if flow[2] & OURS_MASK == classid(old, 0):
                flow[2] = moved(flow[2])
        state.set_value("suspended", waiting)
    conntrack = Conntrack()
    try:
        entries = conntrack.dump(classid(old, 0), OURS_MASK)
        count = conntrack.set_entries([(entry, moved(entry.mark)) for entry in entries])
    finally:
        conntrack.close()
    return [f"move the marks of {count} connections from {old:x}: to {new:x}:"] if count else []


def _apply(settings: Settings, operations: list[Operation]) -> list[str]:
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
                self._classes.apply([tc.add_leaf(key, item.kind, TARGET_US)])
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
            default = tree.default or UNCLASSIFIED_MINOR
            route.put_tree(self._ipr, index, tree.major, default, tree.split_bytes)

    def _remove(self, item: KernelObject) -> None:
        match item:
            case Ifb():
                ifb.delete_link(self._ipr, item.dev)
            case NftTable():
                delete_table(item.name)
            case Tree():
                handle = splitter(item.major) if item.split_bytes else classid(item.major, 0)
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
