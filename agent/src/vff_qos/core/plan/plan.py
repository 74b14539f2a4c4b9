"""The steps from what a node has to what it should have.

Pure: `present` and `absent` take settings, what was observed and what was recorded, and return a
`Plan`.  Objects are listed in the order in which they are made: packets are redirected last, and
removal goes the other way round, so that traffic flows at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ...errors import Refused
from ..htb import (
    CEIL_MINOR,
    UNCLASSIFIED_MINOR,
    classid,
)
from ..layout import first_of, known_majors
from ..old_role import TABLE as OLD_TABLE
from ..settings import Settings
from .desired import SYSCTLS, desired
from .diff import Operation, diff
from .handles import (
    ALIAS,
    EGRESS,
    INGRESS,
    INGRESS_PARENT,
    OUR_PREFS,
    PREF_LEAD,
    PREF_ROOT,
    PREF_SPREAD,
    ROOT,
    ROOT_PARENT,
    SPLIT_LIMIT,
    Interface,
    Qdisc,
    is_mq,
    is_splitter,
    is_tree,
)
from .kernel_record import DeviceRecord, KernelRecord, SavedQdisc
from .nft_table import SETS_WITH_LIMITS, normal_table
from .objects import (
    Clsact,
    Filter,
    FwMark,
    Ifb,
    KernelObject,
    Key,
    Mq,
    NftTable,
    Observed,
    OtherMatch,
    Place,
    SharedClass,
    SharedLeaf,
    Sysctl,
    Tree,
)
from .old_objects import has_old_ingress, has_old_tree, is_old_ifb, marks_of_users, old_refusals
from .trees import decide


class Plan(NamedTuple):
    """Steps in order, what to record before and after them, and what cannot be done here."""

    operations: list[Operation]
    before: KernelRecord
    after: KernelRecord
    notes: tuple[str, ...] = ()
    #: Marks of users of the old role, whose tree goes.
    old_marks: tuple[int, ...] = ()


# --- what there is of ours ---


def first_majors(settings: Settings, record: KernelRecord) -> tuple[int, ...]:
    """Handles of the first tree: of the one that is wanted, and of the one that was made."""
    return settings.major, settings.major if record.major is None else record.major


def known_trees(settings: Settings, record: KernelRecord) -> tuple[int, ...]:
    """Handles that trees of ours may have."""
    one = settings.trees_wanted == 1 and record.trees == 1
    majors = first_majors(settings, record)
    return majors if one else tuple(m for first in majors for m in known_majors(first))


def observed_objects(
    settings: Settings, observed: Observed, record: KernelRecord
) -> dict[Key, KernelObject]:
    """The observed objects that are ours, by their keys.

    Classes, leaf and filters of a tree count only if its root is what it should be: otherwise the
    root is made anew and they go with it.  An ingress qdisc is listed whoever made it.
    """
    chains, majors = first_majors(settings, record), known_trees(settings, record)
    found: list[KernelObject] = [
        Ifb(dev, link.alias, link.up, link.txqlen, link.queues)
        for dev, link in observed.links.items()
        if _our_link(dev, link, settings) or is_old_ifb(observed, dev)
    ]
    found += [
        Clsact(qdisc.dev, qdisc.kind) if has_old_ingress(observed, qdisc.dev) else Clsact(qdisc.dev)
        for qdisc in observed.qdiscs
        if qdisc.parent == INGRESS_PARENT
    ]
    if observed.has_old_table:
        found.append(NftTable([], OLD_TABLE))
    trees: dict[Key, Tree] = {}
    for qdisc in observed.qdiscs:
        dev, major = qdisc.dev, qdisc.handle >> 16
        if is_mq(qdisc, majors):
            found.append(Mq(dev, first_of(major), record.trees))
        if qdisc.parent == ROOT_PARENT and is_splitter(qdisc, majors):
            headless = Tree(dev, major - 1, None, qdisc.limit // SPLIT_LIMIT)
            trees.setdefault(headless.key, headless)
        if is_tree(qdisc, majors):
            above = observed.root(dev)
            if above and is_mq(above, majors):
                tree = Tree(dev, major, qdisc.default, 0, major - first_of(major))
            else:
                split_bytes = above.limit // SPLIT_LIMIT if above else 0
                tree = Tree(dev, major, qdisc.default, split_bytes)
            trees[tree.key] = tree
    found += trees.values()
    for tree in trees.values():
        if tree.queue is None:
            kept = Tree(tree.dev, settings.major, UNCLASSIFIED_MINOR, int(settings.split))
        else:
            kept = replace(tree, major=settings.major + tree.queue, default=UNCLASSIFIED_MINOR)
        if tree.can_become(kept):
            found += _inside(tree, observed)
    if observed.nft is not None:
        found.append(NftTable(normal_table(observed.nft.objects)))
    found += [item for item in observed.filters if _our_filter(item, chains)]
    return {item.key: item for item in found}


def _inside(tree: Tree, observed: Observed) -> Iterator[KernelObject]:
    """What the tree shares among all: classes, leaf, filter."""
    dev, major, number = tree.dev, tree.major, tree.queue or 0
    for minor, params in observed.classes.get((dev, major), {}).items():
        if minor in (CEIL_MINOR, UNCLASSIFIED_MINOR):
            yield SharedClass(dev, major, minor, params, number)
    parent = classid(major, UNCLASSIFIED_MINOR)
    for leaf in observed.qdiscs:
        if leaf.dev == dev and leaf.parent == parent:
            yield SharedLeaf(dev, major, UNCLASSIFIED_MINOR, leaf.kind, number)
    place = Place(dev, ROOT, 0, PREF_ROOT, "all", 0, number)
    at_root = [f for f in observed.filters if f.place._replace(handle=0, protocol="all") == place]
    if at_root:
        # With a handle beside it cls_fw no longer takes the mark itself for the classid.
        match = FwMark() if len(at_root) == 1 else OtherMatch("fw", "with handles")
        yield Filter(at_root[0].place._replace(handle=0), match)


def _our_link(dev: str, link: Interface, settings: Settings) -> bool:
    # An IFB of our name that is down and has no alias is what a creation that was cut short leaves.
    fresh = dev == settings.ifb and not link.alias and not link.up
    return link.kind == "ifb" and (link.alias == ALIAS or fresh)


def _our_filter(found: Filter, chains: tuple[int, ...]) -> bool:
    in_chain = found.place.hook == INGRESS and found.place.chain in chains
    return in_chain or found.leads_away or found.leads


def _our_root(root: Qdisc, majors: tuple[int, ...]) -> bool:
    return is_tree(root, majors) or is_splitter(root, majors) or is_mq(root, majors)


def _foreign_root(root: Qdisc, majors: tuple[int, ...]) -> bool:
    # The kernel gives its defaults no handle; whatever has one was set by somebody.
    return root.handle != 0 and not _our_root(root, majors)


# --- may we, and where ---


def find_wan(settings: Settings, observed: Observed) -> str:
    """The name of the WAN device; Refused with one sentence if there is none."""
    names = sorted(n for n, link in observed.links.items() if n != "lo" and link.kind != "ifb")
    there = ", ".join(names[:20]) or "none"
    if settings.wan == "auto":
        if observed.default is None:
            raise Refused(f"wan: auto finds no default route; set wan to one of: {there}")
        return observed.default
    for name, link in observed.links.items():
        if settings.wan == name or settings.wan in link.altnames:
            return name
    raise Refused(f"wan: interface {settings.wan} does not exist; there are: {there}")


def refusals(settings: Settings, observed: Observed, record: KernelRecord, wan: str) -> list[str]:
    """What forbids us to act on this host, one sentence each; empty if nothing does."""
    found = []
    link = observed.links.get(settings.ifb)
    if settings.ifb == wan:
        found.append(f"ifb: {settings.ifb} is the WAN device; choose another name")
    elif (
        link
        and not _our_link(settings.ifb, link, settings)
        and not is_old_ifb(observed, settings.ifb)
    ):
        found.append(
            f"ifb: interface {settings.ifb} exists and is not ours "
            f"(kind {link.kind or 'device'}); remove it or choose another name"
        )
    root = observed.root(wan)
    foreign = root and _foreign_root(root, known_trees(settings, record))
    if root and foreign and not settings.take_foreign_root and not has_old_tree(observed, wan):
        found.append(
            f"the root qdisc of {wan} is {root.kind} {root.handle >> 16:x}:, which somebody set; "
            f"delete it (tc qdisc del dev {wan} root) or allow take_foreign_root"
        )
    found += old_refusals(observed, wan)
    for item in observed.filters:
        place, classifier = item.place, item.classifier
        at_ingress = (place.dev, place.hook, place.chain) == (wan, INGRESS, 0)
        if at_ingress and place.pref in OUR_PREFS and classifier != "flower":
            found.append(
                f"the ingress filter {classifier} of {wan} holds preference {place.pref}, "
                f"which we need; move it"
            )
        at_egress = (place.dev, place.hook, place.chain) == (wan, EGRESS, 0)
        if at_egress and place.pref in (PREF_SPREAD, PREF_LEAD) and not item.leads:
            found.append(
                f"the egress filter {classifier} of {wan} holds preference {place.pref}, "
                f"which several trees need; move it, or set trees to 1"
            )
    return found


# --- the plan ---


def present(settings: Settings, observed: Observed, record: KernelRecord) -> Plan:
    """The steps to `desired`; Refused, with every reason, if we must not act."""
    wan = find_wan(settings, observed)
    if reasons := refusals(settings, observed, record, wan):
        raise Refused("; ".join(reasons))
    notes = []
    if settings.flood_guard and observed.nft_version < SETS_WITH_LIMITS:
        settings = replace(settings, flood_guard=False)
        notes.append("floods of connections are not paced: that needs libnftables 1.0.6")
    if settings.follow_quic and observed.nft_version < SETS_WITH_LIMITS:
        settings = replace(settings, follow_quic=False)
        notes.append("QUIC connections that move are not followed: that needs libnftables 1.0.6")
    entry = _remember(settings, observed, record, wan)
    trees = decide(settings, observed.links[wan].used_queues, observed.processors, observed.kernel)
    settings = replace(settings, trees=trees.number)
    if trees.why and trees.number == 1:
        notes.append(f"one tree: {trees.why}")
    have = observed_objects(settings, observed, record)
    link = observed.links[wan]
    want = desired(settings, wan, link.mtu, link.used_queues)
    operations = diff(want, have, observed, record)
    sysctls = dict(record.sysctls)
    for item in SYSCTLS:
        now = observed.sysctls.get(item.name)
        if now is None or now.value is None:
            notes.append(f"{item} cannot be set: this kernel has no such parameter")
        elif now.value == "0" and not now.writable:
            notes.append(f"{item} cannot be set: it is read-only here")
        elif now.value == "0":
            sysctls[item.name] = now.value
            operations.append(Operation("change", item))
    major = settings.major if record.major is None else record.major
    before = KernelRecord(
        major, {**record.devices, wan: entry}, sysctls, max(record.trees, trees.number), trees.why
    )
    after = KernelRecord(settings.major, {wan: entry}, sysctls, *trees)
    marks = marks_of_users(observed)
    return Plan(operations, before if operations else after, after, tuple(notes), marks)


def absent(settings: Settings, observed: Observed, record: KernelRecord) -> Plan:
    """The steps that take every object of ours away, wherever it is."""
    operations = []
    for item in SYSCTLS:
        now, old = observed.sysctls.get(item.name), record.sysctls.get(item.name)
        # What somebody has set since is theirs.
        if now and old is not None and now.value == item.value and now.writable:
            operations.append(Operation("restore", Sysctl(item.name, old)))
    have = observed_objects(settings, observed, record)
    operations += diff([], have, observed, record)
    return Plan(operations, record, KernelRecord())


def _remember(
    settings: Settings, observed: Observed, record: KernelRecord, wan: str
) -> DeviceRecord:
    """What `absent` must know of the WAN device."""
    index = observed.links[wan].ifindex
    chains, majors = first_majors(settings, record), known_trees(settings, record)
    entry = record.devices.get(wan)
    if entry and entry.index != index:
        entry = None
    root = observed.root(wan)
    ours = root is not None and _our_root(root, majors)
    traces = ours or any(
        item.place[:2] == (wan, INGRESS) and _our_filter(item, chains) for item in observed.filters
    )
    qdiscs: tuple[SavedQdisc, ...] = ()
    if ours:
        qdiscs = entry.qdiscs if entry else ()
    elif root and _foreign_root(root, majors) and not has_old_tree(observed, wan):
        qdiscs = tuple(
            SavedQdisc(q.kind, q.handle, q.parent, q.options.hex())
            for q in _parents_first(root, observed.qdiscs)
        )
    if not observed.ingress(wan) or has_old_ingress(observed, wan):
        ingress: bool | None = True
    elif traces:
        ingress = entry.ingress if entry else None
    else:
        ingress = False
    return DeviceRecord(index, qdiscs, ingress)


def _parents_first(root: Qdisc, qdiscs: list[Qdisc]) -> list[Qdisc]:
    """A root and what somebody set below it, as it can be made again (the kernel lists it by
    the hash of the handles)."""
    found = [root]
    for above in found:
        found += [
            q
            for q in qdiscs
            if q.dev == root.dev and q.handle and q.parent >> 16 == above.handle >> 16
            and q.parent not in (ROOT_PARENT, INGRESS_PARENT) and q not in found
        ]  # fmt: skip
    return found
