"""Static identities in the agent: their minors, classes, and the kernel's maps of them.

The agent is not in a packet's way: it writes the maps when identities change, when the agent
starts and when the nft table was made anew.  A map names no class that is not there.
"""

from __future__ import annotations

from ..core import events
from ..core.flow import Flow
from ..core.flows.ends import ServiceEnds
from ..core.htb import ENDED_MINOR, MINOR_MASK
from ..core.identities import Identities, StaticFlows
from ..core.settings import PortRange, Settings, merge_ranges
from ..errors import Exhausted, KernelRefused
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack, decode_tuple
from ..kernel.packed.nft_elements import StaticMaps
from ..state import STATIC_MINORS, State, StateError
from .registry import Registry

#: So many classes are made at once; what is beyond is the pool's work, some milliseconds at a time.
_AT_ONCE = 256


class Statics:
    """The shell around `core.identities`.  The caller holds the lock."""

    def __init__(
        self,
        settings: Settings,
        identities: Identities,
        registry: Registry,
        conntrack: Conntrack,
        state: State,
        journal: Journal,
    ) -> None:
        self.identities = identities
        self._settings, self._registry, self._conntrack = settings, registry, conntrack
        self._state, self._journal = state, journal
        self._maps = StaticMaps()
        # What the kernel's maps hold as far as we know, by the user's name; None: not known.
        self._written: dict[str, int] | None = None
        self._flows = StaticFlows(identities, {})
        #: Open flows that were given to whoever has their port or address now.
        self.moved = 0

    def close(self) -> None:
        """Release the socket."""
        self._maps.close()

    @property
    def in_force(self) -> int:
        """How many of them the kernel's maps have."""
        return len(self._written or ())

    @property
    def is_pending(self) -> bool:
        """Whether some wait for their class."""
        return self.identities.has_static and self.in_force < len(self.identities.keys)

    @property
    def minors(self) -> frozenset[int]:
        """Minors of all that have one."""
        owners = (self._registry.of_email(key.encode()) for key in self.identities.keys)
        return frozenset(owner.minor for owner in owners if owner is not None)

    def of_people(self) -> frozenset[int]:
        """Minors among them of people: these have flows that engines tell of, too."""
        owners = map(self._registry.minors.by_key.get, self._registry.persons)
        return self.minors & frozenset(owner.minor for owner in owners if owner is not None)

    def is_whose(self, flow: Flow, ends: ServiceEnds) -> int:
        """The minor of whoever the kernel's maps say a flow is; 0 for nobody."""
        return self._flows.mark(flow, ends) & MINOR_MASK

    def counted_ports(self) -> tuple[PortRange, ...]:
        """Ports of services the number of whose connections is limited."""
        classes = self._registry.classes
        if not (classes.policy.counts_flows or classes.overrides.counts_flows):
            return ()
        ports: list[PortRange] = []
        for service in self.identities.services:
            if self._registry.limits_of(service.key.encode()).counts_flows:
                ports += service.ports
        return merge_ranges(ports)

    def give(self) -> None:
        """Minors for all of them, and classes for the first that have none."""
        try:
            for key in self.identities.keys:
                self._registry.own_email(key.encode())
        except Exhausted as error:
            name = self._registry.name_of(key.encode())
            self._journal.tell(events.EXHAUSTED, error=str(error), email=name)
        # Before the collector may look; those of before until the maps are without them.
        self._protect(self.minors | self._protected)
        self._registry.commit(most_new=_AT_ONCE)

    @property
    def _protected(self) -> frozenset[int]:
        """Minors that are never collected, as the state has them."""
        return frozenset(self._state.get_value(STATIC_MINORS) or ())

    def _protect(self, minors: frozenset[int]) -> None:
        """Keep the collector from these, and from no others."""
        if minors == self._protected:
            return
        try:
            self._state.set_value(STATIC_MINORS, sorted(minors))
        except StateError as error:
            effect = "services and networks may be collected while they are idle"
            self._journal.tell(events.STATE, error=str(error), effect=effect)

    def renew(self) -> None:
        """The maps may have been made anew: write them whole at the next turn."""
        self._written = None

    def write(self, ends: ServiceEnds) -> bool:
        """Bring the maps up to date, then the open flows; returns whether any was moved."""
        if not self.identities.has_static and not self._protected:
            return False  # nor were there any before
        marks: dict[str, int] = {}
        for key in self.identities.keys:
            owner = self._registry.of_email(key.encode())
            if owner is not None and self._registry.is_shaped(owner):
                marks[key] = self._settings.layout.mark(owner.minor)
        if marks == self._written:
            return False
        try:
            if self.identities.has_static:
                self._maps.replace(self.identities.elements(marks))
            else:
                self._maps.clear()
        except KernelRefused as error:
            self._written = None
            self._registry.refused(error)
            return False
        self._written = marks
        self._protect(self.minors)
        self._flows = StaticFlows(self.identities, marks)
        return self._move(self._flows, ends)

    def _move(self, static_flows: StaticFlows, ends: ServiceEnds) -> bool:
        """Flows that were there before keep no other mark, unless it is other software's."""
        layout = self._settings.layout
        wrong = []
        for entry in self._conntrack.dump():
            ended = entry.mark & MINOR_MASK == ENDED_MINOR
            if ended or (entry.mark and not layout.is_ours(entry.mark)):
                continue
            flow = decode_tuple(entry.tuple_raw)
            mark = static_flows.mark(flow, ends) if flow is not None else 0
            if mark and mark != entry.mark:
                wrong.append((entry, mark))
        if wrong:
            self.moved += self._conntrack.set_entries(wrong)
        return bool(wrong)
