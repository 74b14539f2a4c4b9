"""The mirror: every live flow to our service ports, as the kernel's events tell of them.

Text only says whose a flow is; which flows there are, the kernel says.  So a claim costs the same
whatever our ports and addresses are, what names no flow costs next to nothing, and a flow that was
born after a word is not meant by it.

Pure: events and times come in, what is to be done to the kernel goes out.  Times are seconds of a
clock that never goes back.

Longer than 400 lines: what is known of flows is one state, and every event changes several parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, floor, inf
from sys import getsizeof

from ..claims.trust import ADOPTED, DOUBTED, FIXED, WEAK, address_key
from ..flow import Flow
from ..htb import ENDED_MINOR, MINOR_MASK
from ..htb import PROVISIONAL as PROVISIONAL_MARK
from ..layout import Layout
from ..settings import Hop
from .ends import FlowSeen
from .record import (
    ADDRESS_SHIFT,
    BIRTH_SHIFT,
    END,
    FOREIGN,
    MAX_ADDRESSES,
    MINOR,
    NOT_PLAIN,
    PORT_SHIFT,
    PROVISIONAL,
    RANK_SHIFT,
    REMEMBERED,
    RESTRICTED,
    REUSED,
    UDP,
    VAGUE,
    birth_ms,
    holder,
    owned,
    port,
    rank,
    unowned,
)

TCP_PROTO, UDP_PROTO = 6, 17
#: enum tcp_conntrack of include/uapi/linux/netfilter/nf_conntrack_tcp.h: a connection that begins.
_BEGINNING = frozenset((0, 1, 2, 9))  # NONE, SYN_SENT, SYN_RECV, SYN_SENT2
#: Flows of which nobody has spoken, those handed on included, are kept in two generations of this
#: many: what a flood of spoofed packets can take is bounded, and a real client has spoken long
#: before it is forgotten.
GENERATION = 24_576
#: A word may still be on its way when its flow has ended; so long its tuple counts as reused.
_GRAVES = 8_192
#: In the place of the port, where flows of one client's end to several of our ports have ended.
SEVERAL = -1
#: For so long at least it is known that a tuple had another flow before, in seconds.
GRAVE_S = 30.0
#: Flows that somebody deleted from the kernel's table come back with their next packet.
_FALLEN, _FALLEN_S = 65_536, 120.0
#: Ends that a scan of our ports can make us remember.
_MAX_ENDS = 65_536
#: More flows whose marks others overwrite are not counted.
_MAX_ROBBED = 1_024
#: Between the birth of a flow and the event lie some ms when much happens at once.
_SLACK_MS = 50
#: So far two times of one birth may be apart: the kernel's own, and when its event was read or a
#: dump began.
_SAME_BIRTH_MS = 1_000
#: Looks that came late, of which is known since when their events may have waited.
_LATE = 256

#: A dict has room for 36 to 110 bytes an entry while it grows.
_ROOM_BYTES = 200

_PROTO_BIT = {TCP_PROTO: 0, UDP_PROTO: UDP}


# The client's end to a record, or to several where one end has more than one flow.
_Table = dict[bytes, "int | tuple[int, ...]"]
#: The client's end and the flow's record.
Held = tuple[bytes, int]


@dataclass
class Heard:
    """What follows from events: marks to be set, and what is not true any more."""

    #: Flows that have lost the mark they should have.
    restore: list[Held] = field(default_factory=list)
    #: New UDP flows of an address where one user lives: theirs, until a word says otherwise.
    handed_on: list[Held] = field(default_factory=list)
    #: New UDP flows of an address where several live.
    ambiguous: list[Held] = field(default_factory=list)
    #: New UDP flows that the kernel has followed by their QUIC ID: they have a mark already.
    followed: list[Held] = field(default_factory=list)
    #: Clients of whose words no repetition is known any more.
    forgotten: list[bytes] = field(default_factory=list)
    #: A flow bears a mark of other software.
    foreign: bool = False

    def __bool__(self) -> bool:
        """Whether anything follows at all."""
        return bool(
            self.restore
            or self.handed_on
            or self.ambiguous
            or self.followed
            or self.forgotten
            or self.foreign
        )

    def add(self, later: Heard) -> None:
        """What was heard after this."""
        self.restore += later.restore
        self.handed_on += later.handed_on
        self.ambiguous += later.ambiguous
        self.followed += later.followed
        self.forgotten += later.forgotten
        self.foreign |= later.foreign


class Mirror:
    """The live flows of this node.  ``size`` counts them."""

    def __init__(
        self,
        major: int,
        now_s: float = 0.0,
        hand_on: bool = True,
        hops: Iterable[Hop] = (),
        is_restricted: Callable[[int], bool] = lambda _minor: False,
        trees: int = 1,
    ) -> None:
        """``major`` and ``trees`` as of `Layout`; ``hand_on``: give a new UDP flow to the only user
        of its address; ``hops``: ranges of ports that are one; ``is_restricted`` knows minors that
        flows in doubt share."""
        #: When births began to be counted.
        self.epoch_s = now_s
        self._layout = Layout(major, trees)
        self._tag, self._tag_mask, self._trees = self._layout.tag, self._layout.tag_mask, trees
        self._hand_on = hand_on
        self._hops = tuple(hops)
        self._is_restricted = is_restricted
        self._claimed: _Table = {}
        self._young: _Table = {}
        self._old: _Table = {}
        # The ports of ours that flows which have ended had, by the client's end.
        self._graves: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self._fallen: tuple[dict[Held, int], dict[Held, int]] = ({}, {})
        self._turn_graves_s = self._turn_fallen_s = now_s
        # For births that were read late, when they were read to since when they may be: ms.
        self._late: dict[int, int] = {}
        self._addresses: list[bytes] = []
        self._ends: dict[bytes, int] = {}
        #: Who lives where: {address and our UDP port: {minor, with PROVISIONAL if it was handed
        #: on: flows}}.
        self._neighbours: dict[bytes, dict[int, int]] = {}
        # How many of them were handed on.
        self._handed_on = 0
        # What a comparison that failed would have said, and handed on.
        self._unsaid: list[bytes] = []
        self._undecided: list[Held] = []
        #: Minors of static identities, and that of ended flows: theirs they are, whatever is said.
        self.fixed: frozenset[int] = frozenset((ENDED_MINOR,))
        #: Minors of people who have static identities among others: theirs for good are the flows
        #: of which `static_minor` says so.
        self.partly_fixed: frozenset[int] = frozenset()
        self.static_minor: Callable[[Flow], int] = lambda _flow: 0
        # Flows of users whose mark others have overwritten, as comparisons have found.
        self._robbed: set[Held] = set()
        #: Flows that were forgotten because of their number since the table was last compared.
        self.evicted = 0
        #: What became somebody's or nobody's: the client's end, the record before and now (0: no
        #: flow).  None while nobody asks; `anew` says that all may be different.
        self.changes: list[tuple[bytes, int, int]] | None = None
        self.anew = False
        #: New flows seen, and ended ones.
        self.born = self.ended = 0

    # -- looking ----------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many flows are known; those of one client's end count once."""
        return len(self._claimed) + len(self._young) + len(self._old)

    @property
    def claimed(self) -> int:
        """How many of them are somebody's."""
        return len(self._claimed)

    def find(self, client: bytes) -> tuple[int, ...]:
        """The records of the flows from one end of a client."""
        return _find(client, self._claimed, self._young, self._old)

    def plain(self, client: bytes, unless: int = 0) -> int:
        """The only flow from a client's end, if it is nobody's and there is no doubt of it; 0 if
        it has one of the flags ``unless``.

        It may be `REUSED`: then not every word means it.
        """
        record = self._young.get(client) or self._old.get(client)
        if record is None or type(record) is not int or record & (NOT_PLAIN | unless):
            return 0
        return record

    def claim(self, held: dict[bytes, int]) -> None:
        """What was `plain` is somebody's: {client's end: record as it is now}."""
        young, old, claimed = self._young, self._old, self._claimed
        for client, record in held.items():
            if young.pop(client, None) is None:
                old.pop(client, None)
            claimed[client] = record
            if record & UDP:
                self._move(client, 0, record)
        if self.changes is not None:
            self.changes += [(client, 0, record) for client, record in held.items()]

    def ours(self, record: int) -> bytes:
        """Protocol, address and port of our end."""
        proto = UDP_PROTO if record & UDP else TCP_PROTO
        address = self._addresses[record >> ADDRESS_SHIFT & MAX_ADDRESSES - 1]
        return b"%c%b%b" % (proto, address, (record >> PORT_SHIFT & 0xFFFF).to_bytes(2, "big"))

    def address_number(self, address: bytes) -> int:
        """The number that records have for one of our addresses; -1 if none has it."""
        try:
            return self._addresses.index(address)
        except ValueError:
            return -1

    def flow(self, client: bytes, record: int) -> Flow:
        """The flow's name."""
        ours = self.ours(record)
        ports = int.from_bytes(client[-2:], "big"), int.from_bytes(ours[-2:], "big")
        return Flow(ours[0], client[:-2], ports[0], ours[1:-2], ports[1])

    def mark(self, record: int) -> int:
        """The mark that a flow has or should have; 0 for nobody's."""
        minor = record & MINOR
        if not minor:
            return 0
        # As `Layout.mark`, without its cost.
        mark = self._tag + (minor % self._trees << 16) | minor
        return mark | PROVISIONAL_MARK if record & PROVISIONAL else mark

    def last_port(self, client: bytes) -> int:
        """Our port that an ended flow from a client's end had; 0 if that is not known, `SEVERAL`
        if they had several."""
        return self._graves[0].get(client) or self._graves[1].get(client) or 0

    def earliest_ms(self, record: int) -> int:
        """Before this a flow was surely not born; in ms since the mirror began."""
        birth = birth_ms(record)
        return min(self._late.get(birth, birth), birth - _SLACK_MS)

    def claimed_flows(self) -> Iterator[Held]:
        """All flows that are somebody's, also those handed on."""
        for flows in self._all():
            for client, entry in flows.items():
                for record in _records(entry):
                    if record & MINOR:
                        yield client, record

    def nobodys_since(self, since_s: float, ports: bytes) -> int:
        """How many live flows that began after a time are nobody's; ``ports`` says of which of
        ours they are counted."""
        since_ms = round((since_s - self.epoch_s) * 1e3)
        return sum(
            not record & (MINOR | FOREIGN) and birth_ms(record) >= since_ms and ports[port(record)]
            for flows in (self._young, self._old)
            for entry in flows.values()
            for record in _records(entry)
        )

    def watch(self, on: bool) -> None:
        """Keep `changes`, or do not."""
        if on != (self.changes is not None):
            self.changes = [] if on else None
            self.anew = on

    def flows_of(self, minor: int) -> Iterator[Held]:
        """All flows that a minor has for certain."""
        return (held for held in self.claimed_flows() if holder(held[1]) == minor)

    def wanted_minors(self) -> set[int]:
        """Minors whose marks flows bear, or will get back when they wake up."""
        wanted = {record & MINOR for _client, record in self.claimed_flows()}
        return wanted | {r & MINOR for fallen in self._fallen for r in fallen.values()}

    # -- changing ---------------------------------------------------------------------------------

    def pass_on(self, minors: Mapping[int, int]) -> None:
        """What has fallen comes back as the flow of whoever has the user now: {before: now}."""
        for fallen in self._fallen:
            for held, record in fallen.items():
                if (now := minors.get(record & MINOR)) is not None:
                    fallen[held] = record & ~MINOR | now

    def put(self, client: bytes, record: int) -> None:
        """The flow of ``record`` (same end) is as this says now; nothing if it has gone."""
        for flows in (self._claimed, self._young, self._old):
            entry = flows.get(client)
            if entry is not None:
                break
        else:
            return
        end = record & END
        if type(entry) is int:
            if entry & END != end:
                return
            was, new = entry, record
        else:
            found = [r for r in entry if r & END == end]  # type: ignore[union-attr]
            if not found:
                return
            was = found[0]
            new = tuple(record if r & END == end else r for r in entry)  # type: ignore[union-attr, assignment]
        if flows is not self._claimed and _is_claimed(record):
            del flows[client]
            flows = self._claimed
        flows[client] = new
        if self.changes is not None and (was ^ record) & (MINOR | PROVISIONAL):
            self.changes.append((client, was, record))
        if end & UDP:
            self._move(client, was, record)

    def correct(self, client: bytes, record: int, mark: int) -> bool:
        """A flow that was nobody's bears this mark; returns whether it is other software's."""
        given = self._of_mark(mark, client, record)
        self.put(client, unowned(record) | given)
        return bool(given & FOREIGN)

    def still(self, client: bytes, record: int) -> bool:
        """Whether the flow lives and is in the class that ``record`` says."""
        same = END | MINOR | PROVISIONAL
        return any((r ^ record) & same == 0 for r in self.find(client))

    def remove(self, client: bytes, record: int) -> None:
        """The kernel does not have the flow any more."""
        if any(r & END == record & END for r in self.find(client)):
            self._leave(client, record)

    def add(self, seen: FlowSeen, now_s: float) -> int:
        """A flow of which no event told: it was looked up.  Returns its record, 0 if refused."""
        end = self._end(seen.ours)
        if end is None:
            return 0
        for record in self.find(seen.client):
            if record & END == end:
                return record
        record = self._birth(now_s) | end | VAGUE | REUSED
        record |= self._of_mark(seen.mark, seen.client, end)
        self._enter(seen.client, record)
        return record

    def apply(
        self,
        events: Iterable[tuple[bool, FlowSeen]],
        now_s: float,
        after_dump: bool = False,
        since_s: float | None = None,
    ) -> Heard:
        """Take over events that were read at ``now_s`` and sent after ``since_s``, if that is told.

        ``after_dump``: they were sent while the table was dumped, so that a new flow may be one
        that the dump has shown.
        """
        self._turn(now_s)
        heard = Heard()
        birth = self._birth(now_s)
        if since_s is not None and now_s - since_s > _SLACK_MS / 1e3:
            if len(self._late) >= _LATE:
                del self._late[next(iter(self._late))]
            self._late[birth >> BIRTH_SHIFT] = max(0, floor((since_s - self.epoch_s) * 1e3))
        ends, claimed, young = self._ends, self._claimed, self._young
        # One number for all that begin at the same time: in a flood it is half of the memory.
        begun: dict[int, int] = {}
        for is_new, seen in events:
            client = seen[0]
            end = ends.get(seen[1])
            if end is None:
                end = self._end(seen[1])
                if end is None:
                    continue
            if not is_new:
                self.ended += 1
                self._end_flow(client, end, seen[5], heard)
                continue
            self.born += 1
            if (
                seen[2]
                or end & UDP
                or client in claimed
                or client in young
                or client in self._old
                or not self._is_unheard(client, end)
            ):
                self._begin_flow(seen, end, birth, heard, after_dump)
                young = self._young  # that may have begun the next generation
            else:
                # The usual case: a new connection from an end that has no other.
                if len(young) >= GENERATION:
                    self._next_generation()
                    young = self._young
                young[client] = begun.setdefault(end, birth | end)
        return heard

    def resync(
        self,
        table: Iterable[FlowSeen],
        now_s: float,
        is_restricted: Callable[[int], bool],
        lossy: bool = True,
        epoch_offset_s: float = 0.0,
        clear_since_s: float = -inf,
    ) -> Heard:
        """Take over the kernel's whole table: at start, after lost events, and now and then.

        ``lossy``: events may be missing, so that a flow may not be the one that had its tuple
        before.  ``epoch_offset_s``: the time since the epoch less ours, which is that of
        births after ``clear_since_s``.  If reading ``table`` fails, what was not read yet is as
        before.
        """
        # Records move from the old tables to new ones, so that they are never there twice.
        left = self._all()
        asked, self.changes = self.changes is not None, None
        self.evicted = 0
        self._claimed, self._young, self._old = {}, {}, {}
        self._neighbours, self._handed_on = {}, 0
        heard = Heard(forgotten=self._unsaid)
        self._unsaid = []
        try:
            offsets = epoch_offset_s, clear_since_s
            self._compare(left, table, now_s, is_restricted, lossy, offsets, heard)
        except BaseException:
            self._unsaid = heard.forgotten
            for flows in left:
                for client, entry in flows.items():
                    for record in _records(entry):
                        self._enter(client, record)
            raise
        finally:
            # Not each of them: whoever asks counts anew.
            self.anew, self.changes = True, [] if asked else None
        heard.forgotten += [
            client
            for flows in left
            for client in flows
            if any(record & REMEMBERED for record in _find(client, *left))
        ]
        return heard

    def _compare(
        self,
        left: tuple[_Table, _Table, _Table],
        table: Iterable[FlowSeen],
        now_s: float,
        is_restricted: Callable[[int], bool],
        lossy: bool,
        offsets_s: tuple[float, float],
        heard: Heard,
    ) -> None:
        now = self._birth(now_s)
        latest_ms = birth_ms(now) + _SAME_BIRTH_MS
        epoch_offset_s, clear_s = offsets_s
        # They stay here until all neighbours are known, also where this fails.
        new = self._undecided
        for seen in table:
            client, end = seen.client, self._end(seen.ours)
            # The table changes while it is read: a flow may come twice.
            if end is None or any(r & END == end for r in self.find(client)):
                continue
            before = _take(client, end, left)
            born_ms = None
            if seen.started_ns and (born_s := seen.started_ns / 1e9 - epoch_offset_s) > clear_s:
                born_ms = _next_ms(born_s - self.epoch_s)
                if born_ms > latest_ms:
                    born_ms = None  # the clock was set back since
            record = self._compared(before, seen, lossy, born_ms, end)
            if not record:
                given = self._of_mark(seen.mark, client, end)
                if given & MINOR and rank(given) != FIXED and is_restricted(given & MINOR):
                    given = owned(0, given & MINOR, DOUBTED, RESTRICTED)
                record = now | end | REUSED | given
                if born_ms is None:
                    record |= VAGUE
                else:
                    record = record & (1 << BIRTH_SHIFT) - 1 | max(born_ms, 0) << BIRTH_SHIFT
                if end & UDP and not seen.mark:
                    new.append((client, record))
            elif not seen.mark and record & MINOR:
                heard.restore.append((client, record))
            if record & FOREIGN:
                heard.foreign = True
                if _is_claimed(before) and len(self._robbed) < _MAX_ROBBED:
                    self._robbed.add((client, end))
            if seen.tcp_state in _BEGINNING and not record & (UDP | MINOR):
                self._enter_old(client, record)
            else:
                self._enter(client, record)
            here = self.find(client)
            # The same text means either of several now.
            if (before & REMEMBERED and not record & REMEMBERED) or (
                len(here) > 1 and any(other & REMEMBERED for other in here)
            ):
                heard.forgotten.append(client)
        self._undecided = []
        for client, record in new:
            there = next((r for r in self.find(client) if r & END == record & END), 0)
            if there and not there & (MINOR | FOREIGN):
                self.put(client, self._hand_over(client, there, heard))

    @property
    def robbed(self) -> int:
        """How many live flows were a user's and bear a mark of other software now."""
        if self._robbed:
            self._robbed = {
                (client, end)
                for client, end in self._robbed
                if any(r & END == end and r & FOREIGN and not r & MINOR for r in self.find(client))
            }
        return len(self._robbed)

    # -- one event --------------------------------------------------------------------------------

    def _is_unheard(self, client: bytes, end: int) -> bool:
        """Whether nothing is known of an earlier flow of the same name."""
        graves, fallen = self._graves, self._fallen
        if client in graves[0] or client in graves[1]:
            return False
        name = client, end
        return name not in fallen[0] and name not in fallen[1]

    def _begin_flow(
        self, seen: FlowSeen, end: int, birth: int, heard: Heard, after_dump: bool
    ) -> None:
        client, _ours, mark, tcp_state, _started, _by_request = seen
        before = next((r for r in self.find(client) if r & END == end), 0)
        if before and after_dump:
            # The dump has shown it, mostly with the time of its birth; else the event bounds that.
            if before & VAGUE:
                self.put(client, before & (1 << BIRTH_SHIFT) - 1 & ~VAGUE | birth)
            return
        lost = self._come_back(client, end)
        if before:
            # Nobody told of its end: flows older than our socket send no event (nf_conntrack_events
            # of 2), and lost ones were lost.
            self._bury(client, before, False, heard)
            lost = before
        record = birth | end | self._of_mark(mark, client, end)
        if lost or client in self._graves[0] or client in self._graves[1]:
            record |= REUSED
        # A connection that goes on: somebody has emptied the table below it.
        goes_on = tcp_state not in _BEGINNING or bool(end & UDP)
        if lost & MINOR and goes_on and not mark:
            # What was in doubt is so until the next word, as after a restart.
            doubt = lost & (RESTRICTED | PROVISIONAL)
            if before and end & UDP and not doubt:
                # It may as well have timed out, and this be somebody else's.
                doubt = PROVISIONAL
            record = owned(record, lost & MINOR, DOUBTED if doubt else WEAK, doubt)
            heard.restore.append((client, record))
        elif end & UDP and not mark:
            record = self._hand_over(client, record, heard)
        elif end & UDP and record & MINOR and rank(record) == ADOPTED:
            if self._is_restricted(record & MINOR):
                record = owned(record, record & MINOR, DOUBTED, RESTRICTED)
            heard.followed.append((client, record))
        heard.foreign |= bool(record & FOREIGN)
        if any(other & REMEMBERED for other in self.find(client)):
            # The same text means either of them now.
            heard.forgotten.append(client)
        self._enter(client, record)

    def _hand_over(self, client: bytes, record: int, heard: Heard) -> int:
        """A new UDP flow of nobody: the only user's of its address, until a word comes."""
        counts = self._neighbours.get(self._place(client, record), {}) if self._hand_on else {}
        users = {key & MINOR for key in counts}
        if len(users) == 1:
            record = owned(record, users.pop(), DOUBTED, PROVISIONAL)
            heard.handed_on.append((client, record))
        elif users:
            heard.ambiguous.append((client, record))
        return record

    def _end_flow(self, client: bytes, end: int, by_request: bool, heard: Heard) -> None:
        for flows in (self._claimed, self._young, self._old):
            entry = flows.get(client)
            if entry is None:
                continue
            record = next((r for r in _records(entry) if r & END == end), 0)
            if record:
                self._bury(client, record, by_request, heard)
            return

    def _come_back(self, client: bytes, end: int) -> int:
        """What had fallen under this name, the latest; no older one is to rise after it."""
        latest, older = (fallen.pop((client, end), 0) for fallen in self._fallen)
        return latest or older

    def _bury(self, client: bytes, record: int, by_request: bool, heard: Heard) -> None:
        """A flow has ended, or somebody has deleted it."""
        self._leave(client, record)
        if record & REMEMBERED:
            heard.forgotten.append(client)
        self._come_back(client, record & END)
        if by_request and record & MINOR:
            if len(self._fallen[0]) < _FALLEN:
                self._fallen[0][client, record & END] = record
            return
        graves = self._graves
        if len(graves[0]) >= _GRAVES:
            graves = self._graves = ({}, graves[0])
        known, ours = self.last_port(client), port(record)
        graves[0][client] = ours if known in (0, ours) else SEVERAL

    # -- the tables -------------------------------------------------------------------------------

    def _all(self) -> tuple[_Table, _Table, _Table]:
        return self._claimed, self._young, self._old

    def _enter(self, client: bytes, record: int) -> None:
        entry: int | tuple[int, ...] = record
        for flows in self._all():
            there = flows.get(client)
            if there is not None:
                entry = (*_records(there), record)
                if _is_claimed(record) and flows is not self._claimed:
                    del flows[client]
                    flows = self._claimed  # noqa: PLW2901
                break
        else:
            if _is_claimed(record):
                flows = self._claimed
            else:
                if len(self._young) >= GENERATION:
                    self._next_generation()
                flows = self._young
        flows[client] = entry
        if self.changes is not None and record & MINOR:
            self.changes.append((client, 0, record))
        if record & UDP:
            self._move(client, 0, record)

    def _enter_old(self, client: bytes, record: int) -> None:
        """A flow of nobody that no peer has answered: a flood of those must cost no others."""
        if any(client in flows for flows in self._all()):
            self._enter(client, record)
        elif len(self._old) >= GENERATION:
            self.evicted += 1
        else:
            self._old[client] = record

    def _leave(self, client: bytes, record: int) -> None:
        end = record & END
        for flows in self._all():
            entry = flows.get(client)
            if entry is None:
                continue
            if type(entry) is int:
                del flows[client]
            else:
                left = tuple(r for r in entry if r & END != end)  # type: ignore[union-attr]
                flows[client] = left[0] if len(left) == 1 else left
            break
        if self.changes is not None and record & MINOR:
            self.changes.append((client, record, 0))
        if record & UDP:
            self._move(client, record, 0)

    def shrink(self) -> None:
        """Give back the room of flows that are gone, or somebody's by now: a dict keeps it."""
        self._young, self._old = map(_fitting, (self._young, self._old))

    def _next_generation(self) -> None:
        self.evicted += len(self._old)
        if self._handed_on:
            for client, entry in self._old.items():
                for record in _records(entry):
                    if record & UDP and record & PROVISIONAL:
                        self._move(client, record, 0)
        self._old, self._young = self._young, {}

    def _turn(self, now_s: float) -> None:
        """Forget what has been gone for long."""
        if now_s - self._turn_graves_s >= GRAVE_S:
            self._turn_graves_s = now_s
            self._graves = ({}, self._graves[0])
        if now_s - self._turn_fallen_s >= _FALLEN_S:
            self._turn_fallen_s = now_s
            self._fallen = ({}, self._fallen[0])

    def _compared(
        self, before: int, seen: FlowSeen, lossy: bool, born_ms: int | None, end: int
    ) -> int:
        """The record of a flow that the table has, from what was known; 0: nothing that holds."""
        if not before:
            return 0
        mark, held = seen.mark, self.mark(before)
        if (rank(before) == FIXED) != self._is_fixed(held & MINOR_MASK, seen.client, end):
            return 0
        if born_ms is not None and not before & VAGUE:
            if abs(born_ms - birth_ms(before)) > _SAME_BIRTH_MS:
                return 0
        elif lossy:
            if held and mark != held:
                return 0
            before |= REUSED | VAGUE
        if before & FOREIGN or mark == held:
            return before
        if mark and self._layout.is_ours(mark):
            return 0
        if mark:
            return unowned(before) | FOREIGN
        return before

    # -- small things -----------------------------------------------------------------------------

    def _birth(self, now_s: float) -> int:
        return max(0, _next_ms(now_s - self.epoch_s)) << BIRTH_SHIFT

    def _end(self, ours: bytes) -> int | None:
        """Our end as bits of a record; None if it is none that can be kept."""
        end = self._ends.get(ours)
        if end is not None:
            return end
        proto = _PROTO_BIT.get(ours[0])
        if proto is None:
            return None
        address = ours[1:-2]
        try:
            number = self._addresses.index(address)
        except ValueError:
            # All of 127.0.0.0/8 is ours, and a customer may reach it through the proxy.
            is_loopback = len(address) == 4 and address[0] == 127
            if len(self._addresses) >= (MAX_ADDRESSES // 2 if is_loopback else MAX_ADDRESSES):
                return None
            number = len(self._addresses)
            self._addresses.append(address)
        if len(self._ends) >= _MAX_ENDS:
            self._ends.clear()
        number_of_port = int.from_bytes(ours[-2:], "big")
        end = self._ends[ours] = proto | number_of_port << PORT_SHIFT | number << ADDRESS_SHIFT
        return end

    def _is_fixed(self, minor: int, client: bytes, end: int) -> bool:
        """Whether a flow that bears a minor's mark is that one's whatever is said."""
        if minor in self.fixed:
            return True
        return minor in self.partly_fixed and self.static_minor(self.flow(client, end)) == minor

    def _of_mark(self, mark: int, client: bytes, end: int) -> int:
        """What a mark that was there before us says; ``end`` holds our end of the flow."""
        if not mark:
            return 0
        if mark & self._tag_mask == self._tag | PROVISIONAL_MARK:
            return mark & MINOR_MASK | PROVISIONAL
        if mark & self._tag_mask == self._tag and mark & MINOR_MASK:
            minor = mark & MINOR_MASK
            is_fixed = self._is_fixed(minor, client, end)
            return minor | (FIXED if is_fixed else ADOPTED) << RANK_SHIFT
        return FOREIGN

    def _place(self, client: bytes, record: int) -> bytes:
        number = port(record)
        for low, high, target in self._hops:
            if low <= number <= high:
                number = target or low
                break
        return address_key(client[:-2]) + number.to_bytes(2, "big")

    def _move(self, client: bytes, was: int, now: int) -> None:
        """Count who lives at a client's address."""
        place = self._place(client, was or now)
        for record, step in ((was, -1), (now, 1)):
            # What is in doubt says nothing.  What was only handed on keeps its user there: who hops
            # has no other flow after some minutes.
            if not record & MINOR or record & RESTRICTED:
                continue
            key = record & (MINOR | PROVISIONAL)
            if key & PROVISIONAL:
                self._handed_on += step
            users = self._neighbours.setdefault(place, {})
            count = users.get(key, 0) + step
            if count > 0:
                users[key] = count
            else:
                users.pop(key, None)
                if not users:
                    del self._neighbours[place]


def _next_ms(seconds: float) -> int:
    """In ms, rounded up: a birth must not come before a word that was said before it.

    Less than a microsecond is what floats add.
    """
    return ceil(round(seconds * 1e3, 3))


def _fitting(table: _Table) -> _Table:
    return dict(table) if getsizeof(table) > _ROOM_BYTES * (len(table) + 1_000) else table


def _is_claimed(record: int) -> bool:
    """Whether somebody has spoken of a flow: others may be a flood, also from a user's address."""
    return bool(holder(record))


def _find(client: bytes, claimed: _Table, young: _Table, old: _Table) -> tuple[int, ...]:
    """The records of a client's end in the table that has any."""
    entry = claimed.get(client) or young.get(client) or old.get(client)
    return () if entry is None else _records(entry)


def _records(entry: int | tuple[int, ...]) -> tuple[int, ...]:
    return (entry,) if type(entry) is int else entry  # type: ignore[return-value]


def _take(client: bytes, end: int, tables: tuple[_Table, _Table, _Table]) -> int:
    """Take one flow's record out of the table that has it; 0 if none has."""
    for table in tables:
        entry = table.get(client)
        if entry is None:
            continue
        if type(entry) is int:
            if entry & END == end:
                del table[client]
                return entry
            return 0
        found: int = next((r for r in entry if r & END == end), 0)  # type: ignore[union-attr]
        table[client] = tuple(r for r in entry if r is not found)  # type: ignore[union-attr]
        return found
    return 0
