"""Brings the kernel's objects to what the settings say: observe, plan, apply, verify.

The plan itself is made in core/plan/layout.py.  A step that fails ends the run: what was done
stays, and at every step traffic flows (packets are redirected last, and unredirected first).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol

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
from ..core.plan import layout
from ..core.plan.layout import Observed, Operation, Plan, Qdisc
from ..core.settings import Settings
from ..errors import KernelRefused, QosError
from ..kernel import filters, links, nft, rtnetlink
from ..kernel.devices import default_route_device
from ..kernel.packed import tc
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.netlink import Netlink

Recorded = dict[str, Any]
_ACTION_MODULES = {"ctinfo": "act_ctinfo", "mark": "act_skbedit", "redirect": "act_mirred"}
#: Under this key the state holds what `remove` must know of the time before us.
STATE_KEY = "kernel"


class Memory(Protocol):
    """The part of State that is needed here."""

    def get_value(self, key: str) -> Any: ...
    def set_value(self, key: str, value: Any) -> None: ...


def observe(settings: Settings, recorded: Recorded) -> Observed:
    """What is there now, of ours and what is in our way."""
    netlink = Netlink(socket.NETLINK_ROUTE)
    try:
        found = links.links(netlink)
        names = {link.ifindex: name for name, link in found.items()}
        majors = {settings.major, int(recorded.get("major", settings.major))}
        qdiscs = filters.qdiscs(netlink, names, dict.fromkeys(majors, UNCLASSIFIED_MINOR))
        seen = Observed(found, default_route_device(), qdiscs, nft=nft.read_table())
        for qdisc in qdiscs:
            index, major = found[qdisc.dev].ifindex, qdisc.handle >> 16
            if qdisc.parent == layout.INGRESS_PARENT:
                hooks = ["ingress", "egress"] if qdisc.kind == "clsact" else ["ingress"]
            elif layout.is_tree(qdisc, majors):
                hooks = ["root"]
                shared = (CEIL_MINOR, UNCLASSIFIED_MINOR)
                seen.classes[qdisc.dev, major] = filters.read_classes(netlink, index, major, shared)
            else:
                continue
            for hook in hooks:
                seen.filters.update(filters.filters(index, hook, major, names))
        return seen
    finally:
        netlink.close()


def reconcile(settings: Settings, state: Memory, dry_run: bool = False) -> list[str]:
    """Bring the kernel to ``settings``; returns one line for each step, none if nothing differs.

    What was there before us is kept in ``state`` before it is replaced.  With ``dry_run`` nothing
    is changed and the lines say what would be.  Raises Refused (nothing was changed) or
    KernelRefused (the message says which steps were done and which not).
    """

    def plan(recorded: Recorded) -> Plan:
        return layout.present(settings, observe(settings, recorded), recorded, tc.same_class)

    return _run(settings, plan, state, dry_run)


def repair(settings: Settings, state: Memory, dry_run: bool = False) -> list[str]:
    """As `reconcile`, but a suspension stays, also one that begins meanwhile."""
    lines: list[str] = []
    if not state.get_value("suspended"):
        lines = reconcile(settings, state, dry_run)
        if not state.get_value("suspended"):
            return lines
    return lines + reconcile(settings.lifted(), state, dry_run)


def remove(settings: Settings, state: Memory, dry_run: bool = False) -> list[str]:
    """Take every kernel object of ours away and put back what was there; as `reconcile`."""

    def plan(recorded: Recorded) -> Plan:
        return layout.absent(settings, observe(settings, recorded), recorded)

    return _run(settings, plan, state, dry_run)


def _run(
    settings: Settings, make: Callable[[Recorded], Plan], state: Memory, dry_run: bool
) -> list[str]:
    recorded: Recorded = state.get_value(STATE_KEY) or _recorded_by_the_kernel(settings)
    plan = make(recorded)
    lines = [step.text for step in plan.operations]
    if dry_run:
        return lines
    if plan.before != recorded:
        state.set_value(STATE_KEY, plan.before)
    notes = _apply(settings, plan.operations) if lines else []
    notes += _move_marks(int(recorded.get("major", settings.major)), settings.major, state)
    if plan.after != plan.before:
        state.set_value(STATE_KEY, plan.after or None)
    if lines and (left := make(plan.after).operations):
        raise QosError(f"after all steps this still differs: {'; '.join(s.text for s in left)}")
    return lines + notes


def _recorded_by_the_kernel(settings: Settings) -> Recorded:
    """Where the state is lost: the handle of the tree on our IFB, which has our alias.

    Without it a tree of ours would look like somebody else's after a change of the handle.
    """
    majors = rtnetlink.tree_majors(layout.ALIAS, rtnetlink.all_links(), rtnetlink.top_qdiscs())
    others = sorted(majors - {settings.major})
    return {"major": others[0]} if others else {}


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
        entries = list(conntrack.dump(classid(old, 0), OURS_MASK))
        count = conntrack.set_entries([(entry, moved(entry.mark)) for entry in entries])
    finally:
        conntrack.close()
    return [f"move the marks of {count} connections from {old:x}: to {new:x}:"] if count else []


def _apply(settings: Settings, operations: list[Operation]) -> list[str]:
    netlink = Netlink(socket.NETLINK_ROUTE)
    classes = tc.Tc()
    notes: list[str] = []
    try:
        for number, step in enumerate(operations):
            try:
                notes += _step(netlink, classes, settings.major, step)
            except KernelRefused as error:
                done = "; ".join(s.text for s in operations[:number]) or "nothing"
                left = "; ".join(s.text for s in operations[number:])
                what = f"{_lacking(error.code, step)}{error.what} (done: {done}. Not done: {left})"
                raise KernelRefused(error.code, what) from error
        return notes
    finally:
        netlink.close()
        classes.close()


def _lacking(code: int, step: Operation) -> str:
    """What a kernel that has never heard of an object lacks; empty if it refused for another
    reason.

    Only here it shows: lists of modules do not tell what is built in or loaded by a host.
    """
    if step.verb != "add" or code not in (errno.ENOENT, errno.EOPNOTSUPP):
        return ""
    kind, spec = step.key[0], step.spec
    if kind == "root":
        modules = ["sch_htb", *(["sch_tbf"] if spec[2] else [])]
    elif kind == "leaf":
        modules = [f"sch_{spec}"]
    elif kind == "filter":
        modules = [f"cls_{spec.kind}", *(_ACTION_MODULES[action[0]] for action in spec.actions)]
    else:
        modules = {"link": ["ifb"], "ingress": ["sch_ingress"]}.get(kind, [])
    if not modules:
        return ""
    return (
        f"the kernel lacks {' or '.join(modules)}, or cannot load it (install the distribution's "
        "full kernel; in a container, have the host load it): "
    )


def _step(netlink: Netlink, classes: tc.Tc, major: int, step: Operation) -> list[str]:
    """One operation; returns what could not be done of a restoration."""
    verb, key, spec, _text = step
    kind, name = key[0], key[1]
    indices = {dev: link.ifindex for dev, link in links.links(netlink).items()}
    if kind == "nft":
        nft.delete_table() if verb == "remove" else nft.replace_table(spec)
        return []
    if kind == "link":
        if verb == "remove":
            links.delete_link(netlink, name)
        else:
            links.add_ifb(netlink, name, spec[1], spec[3])
        return []
    index = indices.get(name)
    if index is None:
        raise KernelRefused(errno.ENODEV, f"interface {name} vanished")
    if verb == "restore":
        return _restore(netlink, index, name, spec)
    if kind == "root":
        if verb == "remove":
            handle = layout.splitter(spec[0]) if spec[2] else classid(spec[0], 0)
            filters.delete_qdisc(netlink, index, layout.ROOT_PARENT, handle)
            return []
        if spec[2]:
            filters.set_splitter(netlink, index, spec[0], spec[2])
        if verb == "add":
            filters.set_tree(netlink, index, *spec)
    elif kind == "class":
        where = tc.ClassKey(index, major, key[2])
        parent = ROOT_MINOR if key[2] == CEIL_MINOR else CEIL_MINOR
        flags = tc.ADD if verb == "add" else 0
        classes.apply([(lambda s: tc.encode_class(s, where, parent, spec, flags), f"class {key}")])
    elif kind == "leaf":
        where = tc.ClassKey(index, major, key[2])
        if verb == "remove":
            filters.delete_qdisc(netlink, index, classid(major, key[2]))
        else:
            classes.apply(
                [
                    (
                        lambda s: tc.encode_leaf(s, where, spec, TARGET_US, tc.ADD),
                        f"leaf {spec} of {name}",
                    )
                ]
            )
    elif kind == "ingress":
        if verb == "remove":
            filters.delete_qdisc(netlink, index, layout.INGRESS_PARENT)
        else:
            filters.add_clsact(netlink, index)
    elif verb == "remove":
        filters.delete_filter(netlink, key, spec, major, indices)
    else:
        filters.add_filter(netlink, key, spec, major, indices)
    return []


def _restore(netlink: Netlink, index: int, name: str, qdiscs: list[dict[str, Any]]) -> list[str]:
    notes = []
    for old in qdiscs:
        options = bytes.fromhex(old["options"])
        qdisc = Qdisc(name, old["kind"], old["handle"], old["parent"], options)
        label = f"{qdisc.kind} {qdisc.handle >> 16:x}: of {name}"
        try:
            filters.set_qdisc(netlink, index, qdisc)
        except KernelRefused as error:
            try:
                filters.set_qdisc(netlink, index, qdisc._replace(options=b""))
                notes.append(f"{label} came back with default options ({error})")
            except KernelRefused as again:
                notes.append(f"{label} could not be restored ({again})")
    return notes
