"""``vff-qos gc``: collect idle users.  A process of its own, never inside the follower's loop."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable

from ..core import events
from ..core.gc_plan import GcPlan, plan_collection
from ..core.health.rules import WITHOUT_FOLLOWER, judge
from ..core.htb import (
    CEIL_MINOR,
    MINOR_MASK,
    PARKED_PRIO,
    ClassState,
    format_classid,
    sent_of,
)
from ..core.owners import PARKED, QUARANTINE, Owner
from ..core.plan.handles import ROOT
from ..core.settings import Settings
from ..errors import KernelRefused, QosError
from ..journal import Journal
from ..kernel.devices import shaping_devices
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.filter_list import TcFilter, read_filters
from ..kernel.packed.nft_elements import EarlyMaps, QuicIds, clear_elements
from ..kernel.packed.tc import (
    ClassKey,
    Tc,
    change_class,
    delete_class,
)
from ..lock import Lock
from ..name_hashing import people_of
from ..render import display_name, local_time
from ..runfile import read_report
from ..state import STATIC_MINORS, State
from ..told import LEFT_TO_COLLECTION, tell
from .facts import Counted, look, look_after
from .node import Node

#: Deleting a class walks all others under RTNL, and the follower waits meanwhile.
DELETE_BUDGET_S = 0.2
_CHUNK = 16
#: A restart of the follower is no fault: so long it may take, in seconds.
_RESTART_S = 10.0


def collect(node: Node) -> list[str]:
    """Collect, and tell the journal who was collected and what is wrong with the node, also where
    nothing can be collected; returns one line per action.

    Raises KernelRefused, and QosError if something cannot be remembered.
    """
    until_s = time.monotonic() + _RESTART_S
    while read_report(node.paths.run_dir) is None and time.monotonic() < until_s:
        time.sleep(0.5)
    collector = None
    try:
        collector = Collector(node.settings, node.state, node.lock)
        lines = collector.run(dry_run=False)
        node.state.set_value("collected", {"when": time.time(), "actions": len(lines)})
        collector.tell(node.journal)
    finally:
        _tell_findings(node, collector.counted if collector else None)
    return lines


def _tell_findings(node: Node, counted: Counted | None) -> None:
    """What ``status`` says now, in the journal: the follower tells the most of it while it runs,
    and looks at less."""
    facts = look(node).facts if counted is None else look_after(node, counted)
    own = WITHOUT_FOLLOWER if facts.report is None else LEFT_TO_COLLECTION
    try:
        tell(node.paths.run_dir, node.lock, node.journal, judge(facts), own.__contains__)
    except OSError as error:
        raise QosError(f"{node.paths.run_dir}: {os.strerror(error.errno or 0)}") from error


class Collector:
    """One collection: observe, plan, and unless it is a dry run, act; all under the lock."""

    def __init__(
        self, settings: Settings, state: State, lock: Lock, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._state, self._lock, self._clock = settings, state, lock, clock
        self._devices = shaping_devices(settings)
        self._tc, self._conntrack = Tc(), Conntrack()
        #: Users who were parked or whose class is to be deleted, with what becomes of it.
        self.collected: list[tuple[Owner, str]] = []
        #: What it has read; None before.
        self.counted: Counted | None = None

    def run(self, dry_run: bool) -> list[str]:
        """Collect; returns one line per action.  Raises KernelRefused, StateError."""
        with self._lock:
            owners, layout = self._state.owners(), self._settings.layout
            up, down = (self._tc.classes(i, *layout) for i in self._devices)
            marks = self._conntrack.dump_marks(layout.tag, layout.mask)
            marked = Counter(mark & MINOR_MASK for mark in marks)
            self.counted = Counted(owners, up, down, marked)
            up_bytes, down_bytes = sent_of(up), sent_of(down)
            plan = plan_collection(
                owners, up_bytes, down_bytes, marked, self._clock(), self._settings.gc,
                frozenset(self._state.get_value(STATIC_MINORS) or ()),
            )  # fmt: skip
            dangling = [
                (ifindex, found)
                for ifindex, classes in zip(self._devices, (up, down), strict=True)
                for major in layout.majors
                for found in read_filters(ifindex, ROOT, major)
                if found.handle and self._dangles(found, classes)
            ]
            lines = self._describe(plan, marked, dangling)
            if not dry_run:
                # Before anybody else may have a class: what it has moved is its user's.
                parked = {owner.minor for owner in plan.park}
                self._state.accounts.book_all(
                    owners, (up_bytes, down_bytes), self._clock(), parked, people_of(self._state)
                )
                self._act(plan, marked, up, down, dangling)
                deleted = {owner.minor for owner in plan.delete}
                self.collected = [
                    (owner, "deleted" if owner.minor in deleted else "parked")
                    for owner in plan.park
                    if owner.is_user
                ]
        return lines

    def _describe(
        self, plan: GcPlan, marked: dict[int, int], dangling: list[tuple[int, TcFilter]]
    ) -> list[str]:
        lines = []
        deleted = {owner.minor for owner in plan.delete}
        for owner in plan.park:
            fate = "delete" if owner.minor in deleted else "park"
            lines.append(f"{fate} {self._name(owner)}: idle since {local_time(owner.moved)}")
        for owner in plan.release:
            if owner.minor not in deleted:
                lines.append(f"release {self._name(owner)}: no flow bears its mark")
        parked = {owner.minor for owner in plan.park}
        lines += [
            f"delete {self._name(owner)}: more than {self._settings.gc.pool_max} parked classes"
            for owner in plan.delete
            if owner.minor not in parked
        ]
        lines += [
            f"delete filter pref {found.pref} handle {found.handle:#x}: "
            f"its class {format_classid(found.classid)} does not exist"
            for _ifindex, found in dangling
        ]
        return lines

    def tell(self, journal: Journal) -> None:
        """Write down who was collected."""
        for number, (owner, fate) in enumerate(self.collected):
            if not journal.has_room(events.USER_COLLECTED):
                journal.leave_out(events.USER_COLLECTED, len(self.collected) - number)
                return
            journal.tell(
                events.USER_COLLECTED,
                self._settings.layout.mark(owner.minor),
                email=owner.key,
                since=local_time(owner.moved),
                fate=fate,
            )

    def _name(self, owner: Owner) -> str:
        classid = self._settings.layout.mark(owner.minor)
        return f"{display_name(owner.key)} (class {format_classid(classid)})"

    def _dangles(self, found: TcFilter, classes: dict[int, ClassState]) -> bool:
        """A filter below our root that names a class of ours which is not there."""
        if found.classid >> 16 not in self._settings.layout.majors:
            return False
        return found.classid & MINOR_MASK not in classes

    def _act(
        self,
        plan: GcPlan,
        marked: dict[int, int],
        up: dict[int, ClassState],
        down: dict[int, ClassState],
        dangling: list[tuple[int, TcFilter]],
    ) -> None:
        now = self._clock()
        for owner in plan.moved:
            owner.moved = now
            owner.up_seen = up[owner.minor].sent_bytes if owner.minor in up else 0
            owner.down_seen = down[owner.minor].sent_bytes if owner.minor in down else 0
        for owner in plan.park:
            # With the conntrack check switched off, flows may still bear the mark.
            owner.state = QUARANTINE if marked.get(owner.minor) else PARKED
        for owner in plan.release:
            owner.state = PARKED
        if plan.park or plan.delete:
            # Nobody's next connection may go into a class that waits for another owner; the
            # follower sees the new state and fills the maps again.
            clear_elements(EarlyMaps)
        if plan.park or plan.release or plan.delete:
            # The same of a connection that moves; who lives is learned again within some packets.
            clear_elements(QuicIds)
        # First the state: if we die now, the follower revives whom it meets.
        self._state.save_owners([*plan.moved, *plan.park, *plan.release])
        requests = []
        for owner in plan.park:
            for ifindex, classes in zip(self._devices, (up, down), strict=True):
                if owner.minor in classes:
                    params = classes[owner.minor].params._replace(prio=PARKED_PRIO)
                    tree = self._settings.layout.tree(owner.minor)
                    key = ClassKey(ifindex, tree, owner.minor)
                    requests.append(change_class(key, CEIL_MINOR, params))
        self._tc.apply(requests)
        for ifindex, found in dangling:
            self._tc.delete_filter(ifindex, found)
        self._delete(plan.delete)

    def _delete(self, owners: list[Owner]) -> None:
        """Delete classes until the time budget is spent; the next run goes on."""
        deadline, layout = time.monotonic() + DELETE_BUDGET_S, self._settings.layout
        for start in range(0, len(owners), _CHUNK):
            chunk = owners[start : start + _CHUNK]
            for _index, code, what in self._tc.attempt(
                [
                    delete_class(ClassKey(ifindex, layout.tree(owner.minor), owner.minor))
                    for owner in chunk
                    for ifindex in self._devices
                ]
            ):
                if code != errno.ENOENT:
                    raise KernelRefused(code, what)
            self._state.accounts.deleted(owner.minor for owner in chunk)
            self._state.save_owners([], chunk)
            if time.monotonic() > deadline:
                return
