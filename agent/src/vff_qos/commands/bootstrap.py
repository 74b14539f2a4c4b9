"""``vff-qos bootstrap`` and ``remove``: the kernel's objects as the settings say, or none.

Observe, plan, apply, verify.  The plan is made in core/plan/plan.py, its steps are taken in
steps.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing

from ..core.htb import (
    CEIL_MINOR,
    UNCLASSIFIED_MINOR,
)
from ..core.layout import Layout, first_of
from ..core.names import HASHED, Names
from ..core.old_role import DEFAULT_MINOR as OLD_DEFAULT_MINOR
from ..core.old_role import IFB_MAJOR, WAN_MAJOR, OldRole
from ..core.old_role import TABLE as OLD_TABLE
from ..core.plan import plan as planner
from ..core.plan.desired import SYSCTLS
from ..core.plan.handles import ALIAS, EGRESS, INGRESS, INGRESS_PARENT, ROOT, is_tree, queue_parent
from ..core.plan.kernel_record import KernelRecord
from ..core.plan.nft_table import TABLE
from ..core.plan.objects import NftTable, Observed
from ..core.plan.plan import Plan
from ..core.settings import Settings
from ..disabled import refuse_if_disabled
from ..errors import QosError
from ..kept import keep_identities, keep_settings
from ..kernel import filters, nft, rtnetlink
from ..kernel.devices import default_route_device, kernel_version, used_queues
from ..kernel.packed import tc
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.links import read_links
from ..kernel.packed.netlink import Netlink
from ..kernel.packed.nft_elements import CutSet, EarlyMaps, QuicIds, StaticMaps, clear_elements
from ..kernel.packed.nftables import table_flags
from ..kernel.packed.qdisc_list import read_qdiscs
from ..kernel.sysctls import read_sysctl
from ..name_hashing import make_key
from ..runfile import read_report
from ..state import KERNEL_RECORD
from .books import book_now
from .killswitch import resume
from .node import Node
from .relaying import layout_of, make_classes
from .steps import carry_out
from .suspend import lift_limits
from .takeover import Memory, Takeover


def bring_up(node: Node, dry_run: bool, say: Callable[[list[str]], None]) -> None:
    """``bootstrap``: all of ours, and the end of a suspension.

    ``say`` is told of what was done, or with ``dry_run`` would be.  Raises as `reconcile`.
    """
    if not dry_run:
        refuse_if_disabled(node.paths)
    _ = node.written_policy  # without one the follower cannot start
    if not dry_run:
        book_now(node, node.settings)  # a tree that is made anew counts from 0
    before = layout_of(node, node.settings)
    lines = reconcile(node.planned(node.settings), node.state, dry_run, Takeover(node))
    say(lines + make_classes(node, node.settings, before))
    if dry_run:
        return
    names = Names()
    if node.settings.hash_emails:
        names = Names(HASHED, make_key(node.paths.state_dir))
    keep_settings(node.state, node.paths)
    keep_identities(node.state, node.paths, node.settings, names)
    count = resume(node.state, node.lock, node.journal)
    if count is not None:
        agent = "" if read_report(node.paths.run_dir) else "; the agent does not run"
        say([f"resumed: {count} flows are limited again{agent}"])


def heal(node: Node, dry_run: bool, say: Callable[[list[str]], None]) -> None:
    """``bootstrap --repair``: the follower's own repairs do not end what a person has ordered."""
    begun = Takeover(node, by_order=False)
    before = layout_of(node, node.settings_in_force)
    lines = repair(node.planned(node.settings_in_force), node.state, dry_run, begun)
    say(lines + make_classes(node, node.settings_in_force, before))


def take_down(node: Node, dry_run: bool, say: Callable[[list[str]], None]) -> None:
    """``remove``: nothing of ours is left.  Raises as `reconcile`."""
    if not dry_run:
        lift_limits(node)
        book_now(node, node.any_settings)
    say(remove(node.any_settings, node.any_state, dry_run))


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
        chains = set(planner.first_majors(settings, record))
        majors = set(planner.known_trees(settings, record))
        seen = Observed(
            found,
            default_route_device(),
            read_qdiscs(netlink, names, majors),
            nft=nft.read_table() if with_rules else _table_alone(),
            nft_version=nft.version() if with_rules else (),
            sysctls={item.name: read_sysctl(item.name) for item in SYSCTLS},
            old=old,
            has_old_table=old is not None and table_flags(OLD_TABLE) is not None,
            processors=len(os.sched_getaffinity(0)),
            kernel=kernel_version(),
        )
        if settings.trees_wanted != 1:
            for name, link in found.items():
                found[name] = link._replace(used_queues=used_queues(name))
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
            below_mq = qdisc.parent == queue_parent(major) and hooks == [ROOT]
            tree = major - first_of(major) if below_mq else 0
            for hook in hooks:
                seen.filters += filters.read(index, hook, major, chains, names, tree)
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
    old = Layout(old_major, record.trees)
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
            lines += carry_out(settings, plan.operations)
        if takeover:
            lines += takeover.move_marks(plan.after.trees)
        lines += _move_marks(old, Layout(settings.major, plan.after.trees), state)
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
    links, qdiscs = rtnetlink.all_links(), rtnetlink.top_qdiscs()
    majors = rtnetlink.tree_majors(ALIAS, links, qdiscs)
    others = sorted(majors - {settings.major})
    trees = rtnetlink.tree_count(ALIAS, links, qdiscs)
    if not others and trees == 1:
        return KernelRecord()
    return KernelRecord(others[0] if others else settings.major, trees=trees)


def _move_marks(old: Layout, new: Layout, state: Memory) -> list[str]:
    """After the handle or the number of trees has changed: open connections keep their users, under
    new marks.

    Otherwise they would look like other software's, and be unlimited until they end.  Also done
    for those that wait in the state for the end of a suspension.
    """
    if old == new:
        return []

    if waiting := state.get_value("suspended"):
        for flow in waiting["flows"]:
            if old.is_ours(flow[2]):
                flow[2] = new.moved(flow[2])
        state.set_value("suspended", waiting)
    # The agent fills them again, with marks of now.
    clear_elements(CutSet, EarlyMaps, QuicIds, StaticMaps)
    conntrack = Conntrack()
    try:
        wrong = [
            (entry, mark)
            for entry in conntrack.dump(old.tag, old.mask)
            if (mark := new.moved(entry.mark)) != entry.mark
        ]
        count = conntrack.set_entries(wrong)
    finally:
        conntrack.close()
    return [f"move the marks of {count} connections from {old} to {new}"] if count else []
