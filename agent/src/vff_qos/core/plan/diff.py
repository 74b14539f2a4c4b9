"""The steps between two lists of objects: what there is of ours, and what there should be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..htb import same_class
from .handles import EGRESS, INGRESS, ROOT
from .kernel_record import KernelRecord, SavedRoot
from .objects import (
    Clsact,
    Filter,
    Ifb,
    KernelObject,
    Key,
    Mq,
    NftTable,
    Observed,
    SharedClass,
    SharedLeaf,
    Sysctl,
    Tree,
)

Verb = Literal["add", "change", "remove", "restore"]


class Operation(NamedTuple):
    """One step: what is done to what, as it is to be (or, if removed, is)."""

    verb: Verb
    target: KernelObject | SavedRoot

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"


_REMOVAL = (Ifb, NftTable, Mq, Tree, SharedClass, SharedLeaf, Clsact, Filter)


def _removal_order(item: KernelObject) -> tuple[int, bool, int]:
    leads_in = isinstance(item, Filter) and item.place.chain == 0
    minor = item.minor if isinstance(item, SharedClass) else 0
    return _REMOVAL.index(type(item)), leads_in, minor


def diff(
    want: Iterable[KernelObject],
    have: dict[Key, KernelObject],
    observed: Observed,
    record: KernelRecord,
) -> list[Operation]:
    wanted = {item.key: item for item in want}
    operations, kept = _make_room(wanted, have)
    for key, item in wanted.items():
        now = kept.get(key)
        if now is None:
            operations.append(Operation("add", item))
        elif not _is_right(now, item):
            operations += _replace(now, item)
    surplus = [item for key, item in kept.items() if key not in wanted]
    without = {item.dev for item in surplus if isinstance(item, Ifb)}
    bare = {item.dev for item in surplus if isinstance(item, Mq | Tree)}
    for item in sorted(surplus, key=_removal_order, reverse=True):
        match item:
            case Clsact():
                if item.dev not in without and _ingress_removable(item, have, observed, record):
                    operations.append(Operation("remove", item))
            case Ifb() | NftTable() | Sysctl():
                operations.append(Operation("remove", item))
            case Mq():
                if item.dev not in without:
                    operations += _remove_root(item, record)
            case Tree():
                # One with another default bears our number, but is not of our making.
                ours = item.default is None or item.is_complete
                if item.dev not in without and item.queue is None and ours:
                    operations += _remove_root(item, record)
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


def _make_room(
    wanted: dict[Key, KernelObject], have: dict[Key, KernelObject]
) -> tuple[list[Operation], dict[Key, KernelObject]]:
    """Where the number of trees changes: what has to go first, and what is there after that.

    Users' classes have another tree then, and a class keeps its leaf's handle to itself: all trees
    of both devices are made anew.  Deleting a tree alone would leave its queue without a qdisc.
    """
    operations: list[Operation] = []
    gone: set[Key] = set()
    for key, item in wanted.items():
        now = have.get(key)
        if isinstance(item, Ifb) and isinstance(now, Ifb) and item.queues != now.queues:
            # Nobody may send packets to a device that is not there.
            away = [one for one in have.values() if isinstance(one, Filter) and one.leads_away]
            operations += [Operation("remove", one) for one in away]
            operations.append(Operation("remove", now))
            gone |= {one.key for one in away}
            gone |= {one.key for one in have.values() if _device(one) == item.dev}
    for dev in {item.dev for item in wanted.values() if isinstance(item, Tree)}:
        above, wanted_above = have.get(("mq", dev)), wanted.get(("mq", dev))
        if above == wanted_above:
            continue
        if above is not None and above.key not in gone:
            operations.append(Operation("remove", above))
        gone |= {one.key for one in have.values() if _is_below_root(one, dev)}
    return operations, {key: item for key, item in have.items() if key not in gone}


def _device(item: KernelObject) -> str:
    return item.place.dev if isinstance(item, Filter) else getattr(item, "dev", "")


def _is_below_root(item: KernelObject, dev: str) -> bool:
    if isinstance(item, Filter):
        return item.place[:2] == (dev, ROOT)
    return isinstance(item, Mq | Tree | SharedClass | SharedLeaf) and item.dev == dev


def _remove_root(root: Mq | Tree, record: KernelRecord) -> list[Operation]:
    operations = [Operation("remove", root)]
    entry = record.devices.get(root.dev)
    if entry and entry.qdiscs:
        operations.append(Operation("restore", SavedRoot(root.dev, entry.qdiscs)))
    return operations


def _ingress_removable(
    clsact: Clsact, have: dict[Key, KernelObject], observed: Observed, record: KernelRecord
) -> bool:
    dev = clsact.dev
    here = [f for f in observed.filters if f.place.dev == dev and f.place.hook in (INGRESS, EGRESS)]
    others = any(item.key not in have for item in here)
    made = record.devices[dev].ingress if dev in record.devices else None
    mine = any(item.key in have and item.place.hook == INGRESS for item in here)
    known = dev in record.devices or mine or ("tree", dev) in have or ("mq", dev) in have
    return known and made is not False and not others
