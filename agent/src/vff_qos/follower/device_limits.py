"""How many addresses one user may come from at once: counted as flows come and go.

Who is too many is decided in core/flows/places.py.  Their flows go into a slow class of that user
and address, or end.  Marks are the memory of it: after a restart whoever has the user's class was
let in before, and whoever has a slow one was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..core import events
from ..core.claims.trust import FIXED, WEAK, address_key
from ..core.flows.ends import unmapped
from ..core.flows.mirror import Held
from ..core.flows.places import Devices, Place
from ..core.flows.quietest import Life, Timeouts
from ..core.flows.record import birth_ms, holder, owned, rank, unowned
from ..core.layout import Layout
from ..core.owners import Owner
from ..core.policy.model import Limits
from ..core.policy.terms import REFUSE
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.flow_life import decode_source_and_life
from ..render import place_name
from .ending import Ending
from .flow_table import FlowTable
from .marking import Marking
from .registry import Registry

#: A look at the silence of one user's addresses costs a dump of their flows, some ms with 50,000 in
#: the table.  It holds for so long, and so many are made in a second.
_FRESH_S, _LOOKS = 1.0, 8
#: So many slow classes one user may have: a network of IPv6 has 65,536 addresses to come from.
_CLASSES = 8
#: How often users with more addresses than devices are looked at, and those who were slowed down.
_AGAIN_S = 3.0


@dataclass
class _Slow:
    """A class of a device too many."""

    email: str
    place: Place
    flows: int = 0
    due_s: float = 0.0


class DeviceLimits:
    """Keeps users to their number of devices.  The caller holds the lock."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        flows: FlowTable,
        marking: Marking,
        ending: Ending,
        conntrack: Conntrack,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` never goes back."""
        self.restricted = self.refused = 0
        self._layout, self._registry, self._flows = layout, registry, flows
        self._marking, self._ending = marking, ending
        self._conntrack, self._journal, self._clock = conntrack, journal, clock
        self._users: dict[int, Devices] = {}
        #: By their minor.
        self._slow: dict[int, _Slow] = {}
        # Users with more addresses than devices, and when they are looked at again.
        self._crowded: dict[int, float] = {}
        self._silence: dict[int, tuple[float, dict[Place, int]]] = {}
        self._looks, self._looks_s = _LOOKS, 0.0

    def forget(self) -> None:
        """Everything is counted anew."""
        self._users, self._crowded, self._silence = {}, {}, {}
        self._slow = {
            minor: _Slow(email, place) for minor, (email, place) in self._registry.devices().items()
        }

    def recount(self, limits: Callable[[int], Limits | None]) -> None:
        """After `forget`: the flows that there are, in the order of their births."""
        self.forget()
        mirror = self._flows.mirror
        found = []
        for client, record in mirror.claimed_flows():
            minor = holder(record)
            slow = self._slow.get(minor)
            if slow is not None:
                slow.flows += 1
            elif minor and rank(record) != FIXED and self._counts(minor, limits(minor)):
                found.append((birth_ms(record), minor, address_key(client[:-2])))
        for _birth, minor, place in sorted(found):
            self._users.setdefault(minor, Devices()).gain(place)

    def _counts(self, minor: int, limits: Limits | None) -> bool:
        """Whether a user's addresses are counted; those of services and networks are not."""
        return (
            limits is not None
            and limits.devices is not None
            and minor not in self._flows.mirror.fixed
        )

    def is_slow(self, minor: int) -> bool:
        """Whether a minor is that of a slow class."""
        return minor in self._slow

    def gain(self, minor: int, limits: Limits | None, client: bytes, record: int) -> None:
        """A flow is a user's, or in a slow class, from now on."""
        slow = self._slow.get(minor)
        if slow is not None:
            slow.flows += 1
        elif rank(record) != FIXED and self._counts(minor, limits):
            self._users.setdefault(minor, Devices()).gain(address_key(client[:-2]))

    def lose(self, minor: int, client: bytes, record: int) -> None:
        """It is no more."""
        slow = self._slow.get(minor)
        if slow is not None:
            slow.flows -= 1
            return
        if rank(record) == FIXED:
            return  # of a service or a network
        devices = self._users.get(minor)
        if devices is not None:
            devices.lose(address_key(client[:-2]))
            if not devices:
                del self._users[minor]

    # -- deciding ---------------------------------------------------------------------------------

    def keep_to(self, minor: int, limits: Limits, new: list[Held], timeouts: Timeouts) -> None:
        """Slow down or end what is too much; ``new``: flows that have come since the last look.

        Raises KernelRefused.
        """
        devices, most = self._users.get(minor), limits.devices
        if devices is None or most is None or len(devices) <= most:
            self._crowded.pop(minor, None)
            self._silence.pop(minor, None)
            return
        self._crowded.setdefault(minor, self._clock() + _AGAIN_S)
        silent_s = dict(self._look(minor, timeouts))
        places = {address_key(client[:-2]) for client, _record in new}
        silent_s.update(dict.fromkeys(places, 0))
        for place in devices.talking(silent_s, limits.grace_s)[most:]:
            self._act(minor, limits, place, new)

    def tend(self, limits: Callable[[int], Limits | None], timeouts: Timeouts) -> None:
        """Once a second: who speaks again, and for whom there is room.  Raises KernelRefused."""
        now = self._clock()
        for minor, due_s in list(self._crowded.items()):
            if due_s <= now and self._looks_left(now):
                del self._crowded[minor]
                allowed = limits(minor)
                if allowed is not None:
                    self.keep_to(minor, allowed, [], timeouts)
        for minor, slow in list(self._slow.items()):
            if slow.due_s <= now and self._looks_left(now):
                slow.due_s = now + _AGAIN_S
                if slow.flows <= 0:
                    self._drop(minor)
                elif self._has_room(slow, limits, timeouts):
                    self._free(minor, slow)

    def free_all(self) -> None:
        """Nobody's devices are counted any more.  Raises KernelRefused."""
        for minor, slow in list(self._slow.items()):
            self._free(minor, slow)

    def _has_room(
        self, slow: _Slow, limits: Callable[[int], Limits | None], timeouts: Timeouts
    ) -> bool:
        owner = self._user(slow)
        allowed = limits(owner.minor) if owner is not None else None
        if owner is None or allowed is None or allowed.devices is None or allowed.over == REFUSE:
            return True
        devices = self._users.get(owner.minor)
        if devices is None or len(devices) < allowed.devices:
            return True
        silent_s = self._look(owner.minor, timeouts)
        return len(devices.talking(silent_s, allowed.grace_s)) < allowed.devices

    def _user(self, slow: _Slow) -> Owner | None:
        owner = self._registry.minors.by_key.get(slow.email)
        return owner if owner is not None and self._registry.is_shaped(owner) else None

    def _looks_left(self, now_s: float) -> bool:
        if now_s - self._looks_s >= 1.0:
            self._looks, self._looks_s = _LOOKS, now_s
        return self._looks > 0

    def _look(self, minor: int, timeouts: Timeouts) -> dict[Place, int]:
        """For how long each address of a user has been silent; all speak if nobody can look."""
        now = self._clock()
        known = self._silence.get(minor)
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        if not self._looks_left(now):
            return dict.fromkeys(self._users.get(minor, ()), 0)
        self._looks -= 1
        found: dict[Place, int] = {}
        mark = self._layout.mark(minor)
        for source, life in self._conntrack.collect(mark, 0xFFFFFFFF, decode_source_and_life, list):
            _note(found, source, life, timeouts)
        self._silence[minor] = now, found
        return found

    # -- doing ------------------------------------------------------------------------------------

    def _act(self, minor: int, limits: Limits, place: Place, new: list[Held]) -> None:
        user = self._registry.owner(minor)
        if user is None:
            return
        flows = [(c, r) for c, r in new if address_key(c[:-2]) == place]
        devices = self._users[minor]
        if len(flows) < devices.count(place):
            flows = self._flows_of(minor, place)
        if limits.over == REFUSE:
            self._ending.end(flows)
            self.refused += 1
            effect = "refused"
        else:
            owner = self._slow_owner(user.key, place)
            if owner.is_common:
                # No class is left for it.  It shares the user's own with the others.
                return
            self._registry.commit()
            self._slow.setdefault(owner.minor, _Slow(user.key, place))
            self._slow[owner.minor].due_s = self._clock() + _AGAIN_S
            self._fix(self._flows.mirror.fixed | {owner.minor})
            self._marking.give((c, r, owned(r, owner.minor, FIXED)) for c, r in flows)
            self.restricted += 1
            effect = "restricted"
        self._journal.tell(
            events.DEVICES, self._layout.mark(minor), email=user.key, limit=limits.devices or 0,
            address=place_name(place), effect=effect,
        )  # fmt: skip

    def _slow_owner(self, user: str, place: Place) -> Owner:
        """The owner of the slow class for an address: beyond some, those of one user share it."""
        theirs = {s.place: minor for minor, s in self._slow.items() if s.email == user}
        if place not in theirs and len(theirs) >= _CLASSES:
            owner = self._registry.owner(next(iter(theirs.values())))
            if owner is not None and not owner.is_user:
                return owner
        return self._registry.own_device(user, place)

    def _flows_of(self, minor: int, place: Place | None = None) -> list[Held]:
        return [
            held
            for held in self._flows.mirror.flows_of(minor)
            if place in (None, address_key(held[0][:-2]))
        ]

    def _free(self, minor: int, slow: _Slow) -> None:
        """The flows of a slow class are their user's, or nobody's until the next word."""
        owner, flows = self._user(slow), self._flows_of(minor)
        self._drop(minor)
        self._marking.give(
            (c, r, owned(r, owner.minor, WEAK) if owner is not None else unowned(r))
            for c, r in flows
        )

    def _drop(self, minor: int) -> None:
        del self._slow[minor]
        self._fix(self._flows.mirror.fixed - {minor})

    def _fix(self, minors: Iterable[int]) -> None:
        self._flows.mirror.fixed = frozenset(minors)


def _note(found: dict[Place, int], source: bytes, life: Life, timeouts: Timeouts) -> None:
    if not life.is_over:
        place, silent_s = address_key(unmapped(source)), timeouts.idle_s(life)
        found[place] = min(found.get(place, silent_s), silent_s)
