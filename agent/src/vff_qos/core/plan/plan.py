"""The steps from what a node has to what it should have.

Pure: `present` and `absent` take settings, what was observed and what was recorded, and return a
`Plan`.  Objects are listed in the order in which they are made: packets are redirected last, and
removal goes the other way round, so that traffic flows at every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from ...errors import Refused
from ..htb import (
    CEIL_MINOR,
    UNCLASSIFIED_MINOR,
    classid,
    same_class,
)
from ..old_role import TABLE as OLD_TABLE
from ..settings import Settings
from .desired import SYSCTLS, desired
from .kernel_record import DeviceRecord, KernelRecord, SavedQdisc, SavedRoot
from .nft_table import SETS_WITH_LIMITS, normal_table
from .objects import (
    ALIAS,
    EGRESS,
    INGRESS,
    INGRESS_PARENT,
    OUR_PREFS,
    PREF_ROOT,
    ROOT,
    ROOT_PARENT,
    SPLIT_LIMIT,
    Clsact,
    Filter,
    FwMark,
    Ifb,
    Interface,
    KernelObject,
    Key,
    NftTable,
    Observed,
    OtherMatch,
    Qdisc,
    SharedClass,
    SharedLeaf,
    Sysctl,
    Tree,
    is_splitter,
    is_tree,
)
from .old_objects import has_old_ingress, has_old_tree, is_old_ifb, marks_of_users, old_refusals

Verb = Literal["add", "change", "remove", "restore"]


class Operation(NamedTuple):
    """One step: what is done to what, as it is to be (or, if removed, is)."""

    verb: Verb
    target: KernelObject | SavedRoot

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"


class Plan(NamedTuple):
    """Steps in order, what to record before and after them, and what cannot be done here."""

    operations: list[Operation]
    before: KernelRecord
    after: KernelRecord
    notes: tuple[str, ...] = ()
    #: Marks of users of the old role, whose tree goes.
    old_marks: tuple[int, ...] = ()


# --- what there is of ours ---


def _majors(settings: Settings, record: KernelRecord) -> tuple[int, ...]:
    return settings.major, settings.major if record.major is None else record.major


def observed_objects(
    settings: Settings, observed: Observed, record: KernelRecord
) -> dict[Key, KernelObject]:
    """The observed objects that are ours, by their keys.

    Classes, leaf and filters of a tree count only if its root is what it should be: otherwise the
    root is made anew and they go with it.  An ingress qdisc is listed whoever made it.
    """
    majors = _majors(settings, record)
    found: list[KernelObject] = [
        Ifb(dev, link.alias, link.up, link.txqlen)
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
    trees: dict[str, Tree] = {}
    for qdisc in observed.qdiscs:
        dev, major = qdisc.dev, qdisc.handle >> 16
        if qdisc.parent == ROOT_PARENT and is_splitter(qdisc, majors):
            trees.setdefault(dev, Tree(dev, major - 1, None, qdisc.limit // SPLIT_LIMIT))
        if is_tree(qdisc, majors):
            above = observed.root(dev)
            split_bytes = above.limit // SPLIT_LIMIT if above else 0
            trees[dev] = Tree(dev, major, qdisc.default, split_bytes)
    found += trees.values()
    for tree in trees.values():
        kept = Tree(tree.dev, settings.major, UNCLASSIFIED_MINOR, int(settings.split))
        if tree.can_become(kept):
            found += _inside(tree, observed)
    if observed.nft is not None:
        found.append(NftTable(normal_table(observed.nft.objects)))
    found += [item for item in observed.filters if _our_filter(item, majors)]
    return {item.key: item for item in found}


def _inside(tree: Tree, observed: Observed) -> Iterator[KernelObject]:
    """What the tree shares among all: classes, leaf, filter."""
    dev, major = tree.dev, tree.major
    for minor, params in observed.classes.get((dev, major), {}).items():
        if minor in (CEIL_MINOR, UNCLASSIFIED_MINOR):
            yield SharedClass(dev, major, minor, params)
    parent = classid(major, UNCLASSIFIED_MINOR)
    for leaf in observed.qdiscs:
        if leaf.dev == dev and leaf.parent == parent:
            yield SharedLeaf(dev, major, UNCLASSIFIED_MINOR, leaf.kind)
    at_root = [f for f in observed.filters if f.place[:4] == (dev, ROOT, 0, PREF_ROOT)]
    if at_root:
        # With a handle beside it cls_fw no longer takes the mark itself for the classid.
        match = FwMark() if len(at_root) == 1 else OtherMatch("fw", "with handles")
        yield Filter(at_root[0].place._replace(handle=0), match)


def _our_link(dev: str, link: Interface, settings: Settings) -> bool:
    # An IFB of our name that is down and has no alias is what a creation that was cut short leaves.
    fresh = dev == settings.ifb and not link.alias and not link.up
    return link.kind == "ifb" and (link.alias == ALIAS or fresh)


def _our_filter(found: Filter, majors: tuple[int, ...]) -> bool:
    in_chain = found.place.hook == INGRESS and found.place.chain in majors
    return in_chain or found.leads_away


def _our_root(root: Qdisc, majors: tuple[int, ...]) -> bool:
    return is_tree(root, majors) or is_splitter(root, majors)


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
    foreign = root and _foreign_root(root, _majors(settings, record))
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
    have = observed_objects(settings, observed, record)
    want = desired(settings, wan, observed.links[wan].mtu)
    operations = _diff(want, have, observed, record)
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
    before = KernelRecord(major, {**record.devices, wan: entry}, sysctls)
    after = KernelRecord(settings.major, {wan: entry}, sysctls)
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
    operations += _diff([], have, observed, record)
    return Plan(operations, record, KernelRecord())


def _remember(
    settings: Settings, observed: Observed, record: KernelRecord, wan: str
) -> DeviceRecord:
    """What `absent` must know of the WAN device."""
    index = observed.links[wan].ifindex
    majors = _majors(settings, record)
    entry = record.devices.get(wan)
    if entry and entry.index != index:
        entry = None
    root = observed.root(wan)
    ours = root is not None and _our_root(root, majors)
    traces = ours or any(
        item.place[:2] == (wan, INGRESS) and _our_filter(item, majors) for item in observed.filters
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


_REMOVAL = (Ifb, NftTable, Tree, SharedClass, SharedLeaf, Clsact, Filter)


def _removal_order(item: KernelObject) -> tuple[int, bool, int]:
    leads_in = isinstance(item, Filter) and item.place.chain == 0
    minor = item.minor if isinstance(item, SharedClass) else 0
    return _REMOVAL.index(type(item)), leads_in, minor


def _diff(
    want: Iterable[KernelObject],
    have: dict[Key, KernelObject],
    observed: Observed,
    record: KernelRecord,
) -> list[Operation]:
    operations = []
    wanted = {item.key: item for item in want}
    for key, item in wanted.items():
        now = have.get(key)
        if now is None:
            operations.append(Operation("add", item))
        elif not _is_right(now, item):
            operations += _replace(now, item)
    surplus = [item for key, item in have.items() if key not in wanted]
    without = {item.dev for item in surplus if isinstance(item, Ifb)}
    bare = {item.dev for item in surplus if isinstance(item, Tree)}
    for item in sorted(surplus, key=_removal_order, reverse=True):
        match item:
            case Clsact():
                if _ingress_removable(item, have, observed, record):
                    operations.append(Operation("remove", item))
            case Ifb() | NftTable() | Sysctl():
                operations.append(Operation("remove", item))
            case Tree():
                # One with another default bears our number, but is not of our making.
                if item.dev not in without and (item.default is None or item.is_complete):
                    operations += _remove_tree(item, record)
            case SharedClass() | SharedLeaf():
                if item.dev not in bare | without:
                    operations.append(Operation("remove", item))
            case Filter():
                gone = item.place.hook == ROOT and item.place.dev in bare
                if not gone and item.place.dev not in without:
                    operations.append(Operation("remove", item))
    return operations


def _is_right(now: KernelObject, item: KernelObject) -> bool:
    if isinstance(now, SharedClass) and isinstance(item, SharedClass):
        return same_class(now.params, item.params)
    return now == item


def _replace(now: KernelObject, item: KernelObject) -> list[Operation]:
    """From one object to another with its key."""
    in_place = isinstance(item, Ifb | SharedClass | NftTable)
    anew = True
    if isinstance(now, Tree) and isinstance(item, Tree):
        in_place = now.can_become(item)
        # The kernel replaces no qdisc by one of another kind under the same handle.
        anew = abs(now.major - item.major) < 2
    if in_place:
        return [Operation("change", item)]
    return [*([Operation("remove", now)] if anew else []), Operation("add", item)]


def _remove_tree(tree: Tree, record: KernelRecord) -> list[Operation]:
    operations = [Operation("remove", tree)]
    entry = record.devices.get(tree.dev)
    if entry and entry.qdiscs:
        operations.append(Operation("restore", SavedRoot(tree.dev, entry.qdiscs)))
    return operations


def _ingress_removable(
    clsact: Clsact, have: dict[Key, KernelObject], observed: Observed, record: KernelRecord
) -> bool:
    dev = clsact.dev
    here = [f for f in observed.filters if f.place.dev == dev and f.place.hook in (INGRESS, EGRESS)]
    others = any(item.key not in have for item in here)
    made = record.devices[dev].ingress if dev in record.devices else None
    mine = any(item.key in have and item.place.hook == INGRESS for item in here)
    known = dev in record.devices or mine or ("tree", dev) in have
    return known and made is not False and not others
