"""The kernel's flows as the agent knows them: events, dumps and, where there are none, look-ups.

Nothing here decides whose a flow is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ..core import events
from ..core.flows.ends import FlowSeen, ServiceEnds
from ..core.flows.meeting import Tags, Written
from ..core.flows.mirror import TCP_PROTO, UDP_PROTO, Heard, Held, Mirror
from ..core.flows.record import PORT_SHIFT, UDP
from ..core.pace import Pace
from ..core.settings import PortRange, Settings
from ..errors import KernelRefused
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack, pack_mark, surround
from ..kernel.packed.flow_events import FlowEvents, dump_flows, events_mode
from ..sources.clock import Clock

#: How often the whole table is compared: no event tells of a mark that others overwrite, nor
#: (with nf_conntrack_events of 2) of the end of a flow that began before us.  With 50,000 flows
#: that costs 0.6 s: it is done seldom, and where marks are seen to be missing as soon as it may be.
COMPARISON = Pace(share=1 / 10_000, least_s=600.0, most_s=3_600.0)
#: How soon it is compared again if events were lost meanwhile.
_AGAIN_S = 1.0
#: After this many losses of events within this time, look-ups take over for a while.
_MAX_LOSSES, _LOSSES_S, _WITHOUT_S = 5, 10.0, 60.0
#: Look-ups of flows that no event has told of, each second; one costs 6 us.
_LOOK_UPS = 2_000
#: Events are read in blocks, so that a flood takes little memory, and so many at once: it must
#: not keep us from claims.
_BLOCK, _MAX_DRAINS = 2_048, 32
#: How many of our ends are asked for, for one client's end.
_MAX_ASKED = 256


class FlowTable:
    """The mirror and what keeps it true."""

    def __init__(
        self,
        settings: Settings,
        addresses: Iterable[bytes],
        conntrack: Conntrack,
        journal: Journal,
        is_restricted: Callable[[int], bool],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Clock | None = None,
    ) -> None:
        """``clock`` never goes back, ``wall_clock`` knows when that of the kernel's times of
        births was set; ``is_restricted`` knows minors that flows in doubt share."""
        # Births are counted since the clock began: flows are older than we are.
        self.mirror = Mirror(
            settings.major, hops=settings.hops, is_restricted=is_restricted, trees=settings.trees
        )
        self._layout = settings.layout
        #: Of the source that is listened to.
        self.tags = Tags()
        self.look_ups = self.skipped = self.losses = 0
        self._settings, self._conntrack, self._journal = settings, conntrack, journal
        self._is_restricted, self._clock = is_restricted, clock
        self._wall_clock = wall_clock or Clock(monotonic=clock)
        self._ends = ServiceEnds(settings.service_ports, addresses)
        #: Ports of services whose flows are counted: of these only what bears a mark is heard.
        self.static_ports: tuple[PortRange, ...] = ()
        self._heard_ends = self._ends
        self._events: FlowEvents | None = None
        self._recent_losses: list[float] = []
        self._without_until = 0.0
        self._next_compare = self._soonest_compare = clock() + COMPARISON.least_s
        self._budget, self._budget_s = float(_LOOK_UPS), clock()
        # When all events had been read that there were.
        self._empty_s = clock()
        # Events were lost, and the table was not compared since without losing any.
        self._is_incomplete = False
        #: Since when flows have been followed: of those that ended before nothing is known.
        self.since_s = clock()
        self._open()

    def close(self) -> None:
        """Release the sockets."""
        if self._events is not None:
            self._events.close()

    def fileno(self) -> int:
        """To be watched for reading; -1 while there are no events."""
        return -1 if self._events is None else self._events.fileno()

    @property
    def ends(self) -> ServiceEnds:
        """Our addresses and service ports."""
        return self._ends

    @property
    def way(self) -> str:
        """How flows are known: ``events`` or ``look-ups``."""
        return "look-ups" if self._events is None else "events"

    def _open(self) -> None:
        mode = events_mode()
        if mode == 0:
            self._tell("net.netfilter.nf_conntrack_events is 0", ". Set it to 2")
            return
        try:
            self._events = FlowEvents(self._heard_ends)
        except KernelRefused as error:
            self._tell(str(error))

    def _tell(self, why: str, effect: str = "") -> None:
        """Flows are looked up."""
        self._journal.tell(events.FLOWS, error=why, rate=_LOOK_UPS, effect=effect)

    # -- keeping it true --------------------------------------------------------------------------

    def set_addresses(self, addresses: Iterable[bytes]) -> Heard:
        """Our addresses have changed."""
        ends = ServiceEnds(self._settings.service_ports, addresses)
        if ends == self._ends:
            return Heard()
        self._ends = ends
        return self._hear()

    def hear_static(self, ports: tuple[PortRange, ...]) -> Heard:
        """Hear of the flows to these ports of services, too."""
        self.static_ports = ports
        return self._hear()

    def _hear(self) -> Heard:
        self._heard_ends = self._ends
        if self.static_ports and self._ends.ports:  # else all ports are heard of
            ports = (*self._ends.ports, *self.static_ports)
            self._heard_ends = ServiceEnds(ports, self._ends.addresses)
        if self._events is not None:
            self._events.set_ends(self._heard_ends)
        return self.compare(lossy=True)

    def _of_table(self, seen: FlowSeen) -> bool:
        """Whether a flow belongs here: a line of text must name no flow of other ports."""
        if self._heard_ends is self._ends:
            return True
        return self._layout.is_ours(seen.mark) or self._ends.serves(
            int.from_bytes(seen.ours[-2:], "big")
        )

    def drain(self) -> Heard:
        """Take over all events that have been sent until now."""
        if self._events is None:
            return Heard()
        heard, lost = Heard(), False
        for _block in range(_MAX_DRAINS):
            # Not afterwards: we may lose the processor between the last look and the clock.
            began = self._clock()
            try:
                drained = self._events.drain(_BLOCK)
            except KernelRefused as error:
                self._do_without(str(error))
                return heard
            told: Iterable[tuple[bool, FlowSeen]] = drained.events
            if self._heard_ends is not self._ends:
                told = [event for event in told if self._of_table(event[1])]
            heard.add(self.mirror.apply(told, self._clock(), since_s=self._empty_s))
            lost |= drained.lost
            if not drained.more:
                self._empty_s = began
                break
        if lost:
            heard.add(self._make_up())
        return heard

    def _make_up(self) -> Heard:
        """Events were lost: compare, or give up for a while where it happens again and again."""
        now = self._clock()
        self.losses += 1
        self._recent_losses = [t for t in self._recent_losses if now - t < _LOSSES_S] + [now]
        if len(self._recent_losses) < _MAX_LOSSES:
            return self.compare(lossy=True)
        self._do_without("more new flows than can be followed")
        return Heard()

    def _do_without(self, why: str) -> None:
        """No events for a while."""
        assert self._events is not None
        self._events.close()
        self._events = None
        self._recent_losses.clear()
        self._without_until = self._clock() + _WITHOUT_S
        self._tell(why, f", for {_WITHOUT_S:.0f} s")

    def tend(self) -> Heard:
        """Once a second: compare when it is time, listen again after a flood."""
        now = self._wall_clock.look()
        self.mirror.shrink()
        if self._without_until and now >= self._without_until:
            self._without_until = 0.0
            self._open()
            self.since_s = now
            if self._events is not None:
                self._journal.tell(events.FLOWS_BACK)
            return self.compare(lossy=True)
        if self.mirror.evicted:
            # Until then each claim that names no flow is looked up.
            self._next_compare = min(self._next_compare, now + _WITHOUT_S)
        if now >= self._next_compare:
            return self.compare(lossy=self._events is None)
        return Heard()

    def compare_soon(self) -> None:
        """Fewer flows bear marks than the mirror has."""
        self._next_compare = min(self._next_compare, self._soonest_compare)

    def compare(self, lossy: bool) -> Heard:
        """Hold the mirror against the kernel's whole table."""
        began_s = time.thread_time()
        self._wall_clock.look()
        # The last time events were lost, or this failed after such a loss.
        lossy |= self._is_incomplete
        try:
            heard = self.mirror.resync(
                filter(self._of_table, dump_flows(self._heard_ends)),
                self._clock(),
                self._is_restricted,
                lossy,
                self._wall_clock.offset_s,
                self._wall_clock.clear_since_s,
            )
        except KernelRefused as error:
            self._is_incomplete = lossy
            self._next_compare = self._clock() + _AGAIN_S
            effect = f"tried again in {_AGAIN_S:.0f} s"
            self._journal.tell(events.KERNEL, error=str(error), effect=effect)
            return Heard()
        self._put_off(time.thread_time() - began_s)
        if self._events is not None:
            began = self._clock()
            drained = self._events.drain()
            now = self._clock()
            told = (event for event in drained.events if self._of_table(event[1]))
            heard.add(self.mirror.apply(told, now, after_dump=True, since_s=self._empty_s))
            if not drained.more:
                self._empty_s = began
            # Until then flows may be missing that nobody will tell of again.
            self._is_incomplete = drained.lost
            if drained.lost:
                self.losses += 1
                self._next_compare = now + _AGAIN_S
        return heard

    def _put_off(self, cost_s: float) -> None:
        """When to compare next, after one that took so much of a core."""
        now = self._clock()
        self._next_compare = now + (
            _WITHOUT_S if self._events is None else COMPARISON.gap_s(cost_s)
        )
        self._soonest_compare = now + COMPARISON.least_s

    # -- marks ------------------------------------------------------------------------------------

    def request(self, client: bytes, record: int, mark: int) -> bytes:
        """The request that gives a flow the mark."""
        return pack_mark(client, self.mirror.ours(record), mark)

    def around(self, end: int) -> tuple[bytes, bytes, bytes]:
        """What stands around a client's end in the request that marks its flow to one of ours."""
        return surround(self.mirror.ours(end))

    def written(self, since_s: float, until_s: float) -> Written:
        """Times of the steady clock as the mirror counts them."""
        epoch_s = self.mirror.epoch_s
        return Written((since_s - epoch_s) * 1e3, (until_s - epoch_s) * 1e3)

    # -- look-ups ---------------------------------------------------------------------------------

    @property
    def may_miss(self) -> bool:
        """Whether the kernel may have a flow that the mirror has not."""
        return self._events is None or self._is_incomplete or self.mirror.evicted > 0

    def look_up(self, wanted: list[tuple[bytes, bytes]]) -> None:
        """Ask the kernel for flows of (client's end, inbound's tag), as far as the budget goes."""
        asked: list[tuple[bytes, bytes]] = []
        now = self._fill_budget()
        for client, tag in wanted:
            ends = self._candidates(client, tag)
            if not ends or len(ends) > self._budget:
                self.skipped += 1
                continue
            self._budget -= len(ends)
            asked += [(client, end) for end in ends]
        self.look_ups += len(asked)
        marks = self._conntrack.get_marks([pack_mark(client, end, 0) for client, end in asked])
        for (client, end), mark in zip(asked, marks, strict=True):
            if mark is not None:
                self.mirror.add(FlowSeen(client, end, mark, 0, 0, False), now)

    def look_again(self, held: list[Held]) -> Heard:
        """See which of these flows still bear their marks; the others have ended.

        As far as half of the budget goes: flows of which nothing is known need it more.
        """
        now, heard = self._fill_budget(), Heard()
        asked = list(dict.fromkeys(held))[: int(self._budget / 2)]
        self._budget -= len(asked)
        self.look_ups += len(asked)
        mirror = self.mirror
        marks = self._conntrack.get_marks([self.request(client, r, 0) for client, r in asked])
        for (client, record), mark in zip(asked, marks, strict=True):
            if mark != mirror.mark(record):
                mirror.remove(client, record)
                heard.forgotten.append(client)
                if mark is not None:
                    mirror.add(FlowSeen(client, mirror.ours(record), mark, 0, 0, False), now)
        return heard

    def _fill_budget(self) -> float:
        """Returns the time."""
        now = self._clock()
        self._budget = min(_LOOK_UPS, self._budget + (now - self._budget_s) * _LOOK_UPS)
        self._budget_s = now
        return now

    def _candidates(self, client: bytes, tag: bytes) -> list[bytes]:
        """Ends of ours that a client may have reached; empty if they are too many to ask for."""
        addresses = [a for a in self._ends.addresses if len(a) == len(client) - 2]
        known = [
            (UDP_PROTO if end & UDP else TCP_PROTO, end >> PORT_SHIFT & 0xFFFF)
            for end in self.tags.ends(tag)
        ]
        if not known:
            ports = self._ends.ports
            count = sum(high - low + 1 for low, high in ports)
            if not ports or 2 * count * len(addresses) > _MAX_ASKED:
                return []
            known = [
                (proto, port)
                for low, high in ports
                for port in range(low, high + 1)
                for proto in (TCP_PROTO, UDP_PROTO)
            ]
        return [
            b"%c%b%b" % (proto, address, port.to_bytes(2, "big"))
            for proto, port in known
            for address in addresses
        ]

    def gone(self, client: bytes, record: int) -> None:
        """The kernel does not have the flow any more."""
        self.mirror.remove(client, record)

    def name(self, held: Held) -> str:
        """A flow, for people."""
        return str(self.mirror.flow(*held))
