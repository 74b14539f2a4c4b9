"""How many flows one user may have: counted as they come and go, and brought down to the plan.

Flows of users whose plan says nothing of it cost nothing here; without such a plan nothing at all
is kept.  A decision looks at the flows that have been silent for longest (core/flows/quietest.py),
never at all of them.  An ended flow bears a mark of its own as long as it lives, so that the
kernel's table remembers what was decided, whatever becomes of the agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core import events
from ..core.claims.trust import address_key
from ..core.flows.mirror import Held
from ..core.flows.quietest import Life, Quietest, Timeouts, name
from ..core.flows.record import holder
from ..core.layout import Layout
from ..core.owners import Owner
from ..core.policy.model import Limits
from ..core.policy.terms import EVICT
from ..errors import KernelRefused
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.flow_life import decode_life, read_timeouts
from .device_limits import DeviceLimits
from .ending import Ending
from .flow_table import FlowTable
from .marking import Marking
from .registry import Registry

#: A queue has room for so many flows that are gone, beside as many as live.
_ROOM = 64


class FlowLimits:
    """Keeps users to their number of flows.  The caller holds the lock."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        flows: FlowTable,
        marking: Marking,
        conntrack: Conntrack,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` never goes back."""
        self._evicted = self._refused = 0
        self._registry, self._flows = registry, flows
        self._ending = Ending(flows, marking, registry.classes.cuts)
        self._devices = DeviceLimits(
            layout, registry, flows, marking, self._ending, conntrack, journal, clock
        )
        self._conntrack, self._journal, self._clock = conntrack, journal, clock
        self._timeouts = Timeouts()
        # By minor: whose it is and what they may have; how many flows live; those at their limit.
        self._known: dict[int, tuple[Owner | None, Limits | None]] = {}
        self._living: dict[int, int] = {}
        self._queues: dict[int, Quietest] = {}
        # Flows that the table still has, and through which nothing passes any more.
        self._over: set[Held] = set()
        # Who is kept out from where, and when it is to be looked at again.
        self._barred: dict[str, set[bytes]] = {}
        self._barred_end_s: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether anybody's flows are to be counted."""
        classes = self._registry.classes
        limited = classes.policy.counts_flows or classes.overrides.counts_flows
        return limited or bool(self._barred)

    @property
    def is_on(self) -> bool:
        """Whether they are."""
        return self._flows.mirror.changes is not None

    @property
    def counts(self) -> dict[str, int]:
        """What was done, for ``status``."""
        return {
            "connections_evicted": self._evicted,
            "connections_refused": self._refused,
            "devices_restricted": self._devices.restricted,
            "devices_refused": self._devices.refused,
        }

    @property
    def has_work(self) -> bool:
        """Whether `settle` has something to do."""
        mirror = self._flows.mirror
        return bool(mirror.changes) or (mirror.anew and mirror.changes is not None)

    def renew(self) -> None:
        """The policy, orders or the kernel's table may be others: count anew with `settle`."""
        classes, mirror = self._registry.classes, self._flows.mirror
        self._barred, now_s = {}, time.time()
        barred = self._registry.barred()
        for one in barred:
            self._barred.setdefault(one.email, set()).add(one.packed)
        ends = [one.until for one in barred if one.until is not None]
        self._barred_end_s = min(ends) - now_s + self._clock() if ends else None
        is_wanted = self.is_wanted
        if not is_wanted and mirror.changes is None:
            return
        try:
            if not is_wanted:
                self._devices.free_all()
        except KernelRefused as error:
            self._registry.refused(error)
        mirror.watch(is_wanted)
        mirror.anew = True
        if not is_wanted:
            self._forget()
            return
        try:
            self._timeouts = read_timeouts()
            classes.cuts.end_marked()
        except KernelRefused as error:
            self._registry.refused(error)

    def _forget(self) -> None:
        self._known, self._living, self._queues, self._over = {}, {}, {}, set()

    # -- counting ---------------------------------------------------------------------------------

    def settle(self) -> None:
        """Take over what became whose, and end what is too much."""
        mirror = self._flows.mirror
        changes = mirror.changes
        if changes is None or not self.has_work:
            return
        mirror.changes = []
        new: dict[int, list[Held]] = {}
        barred: list[Held] = []
        if mirror.anew:
            mirror.anew = False
            self._recount()
            if self._barred:
                barred = [held for held in mirror.claimed_flows() if self._is_barred(*held)]
            new = {minor: [] for minor in self._living}
        else:
            for client, was, now in changes:
                before, after = holder(was), holder(now)
                if before == after:
                    continue
                if before:
                    self._devices.lose(before, client, was)
                    if self._limits(before) is not None:
                        self._lose(before, client, was)
                if after and self._barred and self._is_barred(client, now):
                    barred.append((client, now))
                if after:
                    limits = self._limits(after)
                    self._devices.gain(after, limits, client, now)
                    if limits is not None:
                        self._gain(after, client, now)
                        new.setdefault(after, []).append((client, now))
        if barred:
            self._bar(barred)
        for minor, held in new.items():
            limits = self._limits(minor)
            if limits is not None:
                self._keep_to(minor, limits, held)

    def tend(self) -> None:
        """Once a second: `settle`, and what only time brings."""
        if self._barred_end_s is not None and self._clock() >= self._barred_end_s:
            self.renew()
        self.settle()
        if self.is_on:
            try:
                self._devices.tend(self._limits, self._timeouts)
            except KernelRefused as error:
                self._registry.refused(error)

    def _is_barred(self, client: bytes, record: int) -> bool:
        owner = self._registry.owner(holder(record))
        places = self._barred.get(owner.key) if owner is not None else None
        return places is not None and address_key(client[:-2]) in places

    def _bar(self, flows: list[Held]) -> None:
        try:
            self._ending.end(flows)
        except KernelRefused as error:
            self._registry.refused(error)

    def _recount(self) -> None:
        self._forget()
        self._devices.recount(self._limits)
        for _client, record in self._flows.mirror.claimed_flows():
            minor = holder(record)
            if minor and self._limits(minor) is not None:
                self._living[minor] = self._living.get(minor, 0) + 1

    def _limits(self, minor: int) -> Limits | None:
        """What the user of a minor may have; None without a word on flows."""
        owner = self._registry.owner(minor)
        known = self._known.get(minor)
        if known is not None and known[0] is owner:
            return known[1]
        limits = self._registry.classes.limits(owner) if owner is not None else None
        if owner is None or not owner.is_user or limits is None or not limits.counts_flows:
            limits = None
        self._known[minor] = owner, limits
        return limits

    def _gain(self, minor: int, client: bytes, record: int) -> None:
        self._living[minor] = self._living.get(minor, 0) + 1
        self._over.discard(name(client, record))
        queue = self._queues.get(minor)
        if queue is not None:
            queue.add(client, record)
            if len(queue) > 2 * self._living[minor] + _ROOM:
                queue.prune(self._flows.mirror.still)

    def _lose(self, minor: int, client: bytes, record: int) -> None:
        flow = name(client, record)
        if flow in self._over:
            self._over.remove(flow)
            return
        left = self._living.get(minor, 0) - 1
        if left > 0:
            self._living[minor] = left
        else:
            self._living.pop(minor, None)
        limits = self._limits(minor)
        if limits is None or left < (limits.connections or 0) // 2:
            self._queues.pop(minor, None)

    # -- deciding ---------------------------------------------------------------------------------

    def _keep_to(self, minor: int, limits: Limits, new: list[Held]) -> None:
        """``new``: flows that have come since the last look, the latest last."""
        try:
            if limits.devices is not None:
                self._devices.keep_to(minor, limits, new, self._timeouts)
                new = [held for held in new if self._flows.mirror.still(*held)]
            most = limits.connections
            if most is not None and self._living.get(minor, 0) > most:
                self._thin_out(minor, limits, most, new)
        except KernelRefused as error:
            self._registry.refused(error)

    def _thin_out(self, minor: int, limits: Limits, most: int, new: list[Held]) -> None:
        """Raises KernelRefused."""
        excess = self._living.get(minor, 0) - most
        evict = limits.over_connections == EVICT
        if minor not in self._queues:
            self._queues[minor] = Quietest(self._flows.mirror.flows_of(minor))
        now_ms = round((self._clock() - self._flows.mirror.epoch_s) * 1e3)
        chosen = self._queues[minor].choose(
            excess, now_ms, self._flows.mirror.still, self._ask, self._timeouts, evict
        )
        for client, record in chosen.ended:
            self._lose(minor, client, record)
            self._over.add(name(client, record))
        victims = chosen.quietest
        excess -= len(chosen.ended)
        if not evict and excess > 0:
            victims = new[-excess:]
        if victims:
            self._ending.end(victims)
            self._tell(minor, most, evict, len(victims))

    def _ask(self, flows: list[Held]) -> list[Life | None]:
        return self._conntrack.get([self._flows.request(c, r, 0) for c, r in flows], decode_life)

    def _tell(self, minor: int, most: int, evict: bool, count: int) -> None:
        if evict:
            self._evicted += count
            effect = f"{count} ended, those that were silent for longest"
        else:
            self._refused += count
            effect = f"{count} new ones refused"
        owner = self._registry.owner(minor)
        if owner is not None:
            self._journal.tell(
                events.CONNECTIONS, self._registry.classes.mark(owner), email=owner.key,
                limit=most, effect=effect,
            )  # fmt: skip
