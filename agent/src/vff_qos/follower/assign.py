"""From claims to marks: the path this program exists for.

Order within one batch: look the flows up, judge the claims, save new owners, make their classes,
set the marks.  A mark never names a class that is not there, and a crash between two steps
leaves nothing that the next start does not adopt.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from ..commands.overrides import describe_override
from ..core.claims.accesslog import (
    FREE_TEXT_BYTES,
    Claim,
    Source,
    inbound_tag,
    parse_source,
    spellings,
)
from ..core.claims.trust import VOUCH_S, Verdict, address_key, judge
from ..core.flow import Flow
from ..core.htb import MINOR_MASK, OURS_MASK, PROVISIONAL, TAG_MASK, classid
from ..core.owners import ACTIVE, QUARANTINE, RESTRICTED, Minors, Owner
from ..core.policy.model import Limits, Policy, lowest_of
from ..core.policy.overrides import OPERATOR, Override, changed_emails
from ..core.resolver import Resolver
from ..core.settings import Settings
from ..errors import Exhausted, KernelRefused
from ..journal import ERROR, NOTICE, WARNING, Journal
from ..kernel.packed.conntrack import (
    Conntrack,
    Entry,
    decode_tuple,
    prepare,
    prepared_mark,
    with_mark,
)
from ..kernel.packed.netlink import MAX_BATCH
from ..kernel.packed.tc import Tc
from ..lock import Lock
from ..shaping import Classes, Listed
from ..state import State, StateError
from .early import EarlyShaping

#: Owner of a class that the kernel has and the state does not know.
ORPHAN = "\x02"

#: How long a flow may take to appear in conntrack behind its line.
_RETRY_S = 0.03
_MAX_RETRIES = 4_096
_RECENT = 16_384
_MAX_VOUCHES = 65_536
_MAX_DOUBTED = 16_384
#: A walk over the table finds flows whose end of ours cannot be guessed; at most one a second.
_WALK_GAP_S = 1.0
#: To notice a flushed conntrack table: flows looked at each second, how many must lack the mark.
_SAMPLE, _SAMPLE_LOST, _FEW = 16, 3, 4
_REMARK_S, _REMARK_GAP_S = 60.0, 5.0


@dataclass
class Counts:
    """What became of the claims."""

    marked: int = 0
    kept: int = 0
    no_flow: int = 0
    no_source: int = 0
    retried: int = 0
    restricted: int = 0
    conflicts: int = 0
    ignored_tainted: int = 0
    foreign_mark: int = 0
    new_owners: int = 0
    exhausted: int = 0
    walks: int = 0
    early_confirmed: int = 0
    early_corrected: int = 0


class _Recent:
    """A flow that was marked lately by an untainted claim, and the request that did it."""

    __slots__ = ("email", "request")

    def __init__(self, email: bytes, request: bytes) -> None:
        self.email, self.request = email, request


class _Item:
    """A claim on its way; ``flow``, its prepared request and its mark once they are known."""

    __slots__ = ("claim", "flow", "local", "mark", "request", "source", "tag")

    def __init__(self, claim: Claim, source: Source, tag: bytes, local: Source | None) -> None:
        self.claim, self.source, self.tag, self.local = claim, source, tag, local
        self.flow: Flow | None = None
        self.request, self.mark = b"", 0

    def found(self, flow: Flow, request: bytes, mark: int) -> None:
        """The kernel has the flow."""
        self.flow, self.request, self.mark = flow, request, mark


def _key(source: bytes, local: bytes | None) -> bytes:
    """What a claim's flow is remembered by; one source may have several where our end is known."""
    return source if local is None else source + b" > " + local


def _keep(flows: dict[Flow, int], flow: Flow, mark: int) -> None:
    """Remember a flow; forgetting the oldest makes its restriction last, which is the safe side."""
    if len(flows) >= _MAX_DOUBTED and flow not in flows:
        del flows[next(iter(flows))]
    flows[flow] = mark


class Suspended(Exception):
    """The kill switch was thrown: stop marking, end in peace."""


class Assigner:
    """Gives flows to users.  Owns the tables in memory; the kernel and the state are shared."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        state: State,
        lock: Lock,
        journal: Journal,
        devices: tuple[int, int],
        resolver: Resolver,
        clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``devices`` are the interface indexes of (IFB, WAN): upload and download."""
        self.counts = Counts()
        self.wants_repair = False
        self.resolver = resolver
        self._settings = settings
        self._state, self._lock, self._journal = state, lock, journal
        self._clock, self._steady_clock = clock, steady_clock
        self._tag = settings.major << 16
        self._conntrack, self._tc = Conntrack(), Tc()
        self._classes = Classes(settings, policy, self._tc, devices, clock)
        self._early = (
            EarlyShaping(settings.major, self._conntrack) if settings.early_shaping else None
        )
        self._minors = Minors(settings.major)
        self._version = -1
        self._unsaved: dict[str, Owner] = {}
        self._recent: dict[bytes, _Recent] = {}
        # How many of them have come since the last look for a flush.
        self._young = 0
        self._vouched: dict[bytes, float] = {}
        # Flows that stand in doubt: by tainted claims only (an untainted one may change that), and
        # by conflict (nothing may); with their marks.
        self._soft: dict[Flow, int] = {}
        self._doomed: dict[Flow, int] = {}
        self._retries: list[tuple[float, _Item]] = []
        self._next_walk = 0.0
        self._free_text_until = 0
        self._remark_until = self._remark_next = 0.0

    def close(self) -> None:
        """Release sockets."""
        self._conntrack.close()
        self._tc.close()
        if self._early is not None:
            self._early.close()

    @property
    def port_ids(self) -> tuple[int, int]:
        """Netlink port ids of our sockets: changes they make are our own."""
        return self._tc.netlink.port_id, self._conntrack.netlink.port_id

    @property
    def users(self) -> int:
        """Active owners."""
        return [owner.state for owner in self._minors.by_minor.values()].count(ACTIVE)

    def set_devices(self, devices: tuple[int, int]) -> None:
        """Indexes of (IFB, WAN) after a repair; ``adopt`` must follow."""
        self._classes.devices = devices

    # -- adopting what is there -----------------------------------------------------------------

    def adopt(self) -> int:
        """Take over the state and what the kernel has; returns the number of live marked flows.

        Live flows whose class is gone get it back, and so do flows that were marked lately; all
        others get theirs with their next claim.  Marks of nobody are cleared, because the next
        claim would look like a conflict.  Raises Suspended, KernelRefused.
        """
        with self._lock:
            listed = self._load()
            if self._state.get_value("suspended"):
                raise Suspended
            marked: dict[int, int] = {}
            strays: list[tuple[Entry, int]] = []
            for entry in self._conntrack.dump(self._tag, OURS_MASK):
                minor = entry.mark & MINOR_MASK
                if entry.mark & PROVISIONAL:
                    if self._early is None or minor not in self._minors.by_minor:
                        strays.append((entry, 0))
                elif minor in self._minors.by_minor:
                    marked[minor] = marked.get(minor, 0) + 1
                    self._adopt_flow(entry, self._minors.by_minor[minor])
                else:
                    strays.append((entry, 0))
            self._conntrack.set_entries(strays)
            revived = []
            for minor in marked:
                owner = self._minors.by_minor[minor]
                if owner.state != ACTIVE and not owner.key.startswith(ORPHAN):
                    self._minors.take(owner.key, self._clock())
                    revived.append(owner)
            self._save(revived, [])
            # The policy may have changed, or an override ended, while nobody looked.
            lately = self._expected()
            owners = [
                owner
                for owner in self._minors.by_minor.values()
                if owner.minor in marked or owner.minor in lately or self._is_shaped(owner)
            ]
            self._ensure(self._classes.outdated(owners, listed))
            return sum(marked.values())

    def _expected(self) -> set[int]:
        """Minors whose marks we set without asking whether their class is there."""
        marks = [prepared_mark(record.request) for record in self._recent.values()]
        marks += [*self._soft.values(), *self._doomed.values()]
        return {mark & MINOR_MASK for mark in marks} & self._minors.by_minor.keys()

    def _adopt_flow(self, entry: Entry, owner: Owner) -> None:
        """Remember a marked flow, so that a flushed table can be mended after a restart, too."""
        flow = self._our_flow(entry)
        if flow is None or owner.key < " " or len(self._recent) >= _RECENT:
            return
        bare = spellings(Source(flow.proto, flow.src, flow.sport))[0]
        self._recent[bare] = _Recent(owner.key.encode(), prepare(flow, entry.mark))

    def _our_flow(self, entry: Entry) -> Flow | None:
        """A dumped entry's tuple from the client to us; None if it is no flow to our services.

        Behind a flush the entry's original direction is that of whoever spoke first.
        """
        flow = decode_tuple(entry.tuple_raw)
        if flow is None:
            return None
        for tuple_ in (flow, Flow(flow.proto, flow.dst, flow.dport, flow.src, flow.sport)):
            if self.resolver.is_ours(tuple_):
                return tuple_
        return None

    def _load(self) -> Listed:
        """Read owners and classes anew: at start, and after another process has written.

        Returns what classes there were.
        """
        owners = {owner.key: owner for owner in self._state.owners()}
        owners.update(self._unsaved)
        version = self._state.version()
        self._minors = Minors(self._settings.major, owners.values())
        up, down = listed = self._classes.listed()
        now = self._clock()
        orphans = [
            Owner(f"{ORPHAN}{minor:x}", minor, QUARANTINE, now, now)
            for minor in (up.keys() | down.keys()) - self._minors.by_minor.keys()
            if 2 <= minor < 0xFFFE
        ]
        for orphan in orphans:
            self._minors.by_key[orphan.key] = self._minors.by_minor[orphan.minor] = orphan
        self._save(orphans, [])
        self._recent = {key: r for key, r in self._recent.items() if self._still_owns(r)}
        if self._early is not None:
            self._early.renew()
        self._load_overrides(up.keys() & down.keys())
        # Not before: what the kernel refused on the way is to be done again.
        self._version = version
        return listed

    def _load_overrides(self, made: set[int]) -> None:
        """Take over what others ordered; what differs is put in force."""
        before = self._classes.overrides.by_email
        self._classes.set_overrides(self._state.overrides())
        for problem in self._classes.overrides.problems:
            self._journal.limited("config", problem, WARNING)
        changed = changed_emails(before, self._classes.overrides.by_email)
        shifted = self._classes.load(self._minors.by_minor.values(), made)
        self._ensure([*shifted, *self._shaped(changed)])

    def _shaped(self, emails: Iterable[str]) -> list[Owner]:
        """The owners among ``emails`` who have a class at the moment."""
        owners = (self._minors.by_key.get(email) for email in emails)
        return [owner for owner in owners if owner is not None and self._is_shaped(owner)]

    def _is_shaped(self, owner: Owner) -> bool:
        return owner.state == ACTIVE and self._classes.has(owner.minor)

    def _still_owns(self, record: _Recent) -> bool:
        owner = self._minors.by_minor.get(prepared_mark(record.request) & MINOR_MASK)
        return owner is not None and owner.state == ACTIVE and owner.key.encode() == record.email

    # -- claims ---------------------------------------------------------------------------------

    def assign(self, claims: Iterable[Claim]) -> None:
        """Mark the flows of ``claims``.  Raises Suspended; kernel refusals are counted and told."""
        with self._lock:
            if self._lock.changed_hands:
                self._refresh()
            known: dict[_Recent, Claim] = {}
            slow: list[Claim] = []
            recent = self._recent
            anonymous = bool(self._settings.free_text_ports)
            for claim in claims:
                source, _detour, email, tainted, _time, _position, local = claim
                if email == b"" and not anonymous and not self._may_be_early(claim):
                    continue  # a line without a user claims nothing where names are checked
                record = recent.get(source if local is None else _key(source, local))
                if record is not None and record.email == email and not tainted:
                    known[record] = claim
                else:
                    slow.append(claim)
            if known:
                slow += self._confirm(known)
            for start in range(0, len(slow), MAX_BATCH):
                # In parts: what the first teach about our end is asked first for the others.
                self._resolve(self._items(slow[start : start + MAX_BATCH]), last=False)

    def retry(self, now_s: float) -> float | None:
        """Look again for flows that were not there; returns seconds until the next is due."""
        if not self._retries:
            return None
        due = [item for when, item in self._retries if when <= now_s]
        if due:
            self._retries = [pair for pair in self._retries if pair[0] > now_s]
            with self._lock:
                self._refresh()
                self._resolve(due, last=True)
        if not self._retries:
            return None
        return max(0.0, min(due_s for due_s, _item in self._retries) - now_s)

    def _refresh(self) -> None:
        """See what other processes did; under the lock, without which none of them writes."""
        version = self._state.version()
        if version != self._version:
            self._load()
            if self._state.get_value("suspended"):
                raise Suspended
        self._lock.changed_hands = False

    def _confirm(self, known: dict[_Recent, Claim]) -> list[Claim]:
        """Set known marks again: a reused tuple is a new flow without one.

        Returns the claims whose flow is gone; they go the long way.
        """
        errors = self._conntrack.set_marks([record.request for record in known])
        self.counts.marked += len(known) - len(errors)
        if not errors:
            return []
        claims = list(known.values())
        again = []
        for index, code in errors.items():
            claim = claims[index]
            key = _key(claim.source, claim.local)
            del self._recent[key]
            if code != errno.ENOENT:
                self._refused(KernelRefused(code, f"setting the mark of {key.decode()}"))
            again.append(claim)
        return again

    def _items(self, claims: list[Claim]) -> list[_Item]:
        items = []
        for claim in claims:
            source = parse_source(claim.source)
            if source is None:
                self.counts.no_source += 1
            else:
                local = parse_source(claim.local) if claim.local is not None else None
                items.append(_Item(claim, source, inbound_tag(claim.detour), local))
        return items

    def _resolve(self, items: list[_Item], last: bool) -> None:
        """Find the flows of ``items``, judge, mark.  ``last``: this is the second try."""
        resolver = self.resolver
        missing = self._look_up(items, lambda i: resolver.first(i.source, i.tag, i.local))
        if missing:
            missing = self._look_up(missing, lambda i: resolver.rest(i.source, i.tag))
        if missing and last:
            self._walk(missing)
        elif missing:
            self._later(missing, self._clock() + _RETRY_S)
        self._mark([item for item in items if item.flow is not None])

    def _look_up(
        self, items: list[_Item], candidates: Callable[[_Item], list[Flow]]
    ) -> list[_Item]:
        """Ask the kernel for candidate tuples; returns items that none of them fits."""
        asked = [(item, flow) for item in items for flow in candidates(item)]
        requests = [prepare(flow) for _item, flow in asked]
        marks = self._conntrack.get_marks(requests)
        for (item, flow), request, mark in zip(asked, requests, marks, strict=True):
            if mark is not None and item.flow is None:
                item.found(flow, request, mark)
        return [item for item in items if item.flow is None]

    def _later(self, items: list[_Item], due_s: float) -> None:
        """Look for the flows of ``items`` again; what is too much is counted as not found."""
        room = _MAX_RETRIES - len(self._retries)
        self._retries += [(due_s, item) for item in items[:room]]
        self.counts.retried += min(room, len(items))
        self.counts.no_flow += max(0, len(items) - room)

    def _walk(self, items: list[_Item]) -> None:
        """Last resort where our ends are too many to ask for: one walk a second for all."""
        now = self._clock()
        items_left = [item for item in items if not self.resolver.can_ask(item.source)]
        self.counts.no_flow += len(items) - len(items_left)
        if not items_left:
            return
        if now < self._next_walk:
            self._later(items_left, self._next_walk)
            return
        self._next_walk = now + _WALK_GAP_S
        self.counts.walks += 1
        wanted = {(item.source.address, item.source.port): item for item in items_left}
        for entry in self._conntrack.dump():
            flow = self._our_flow(entry)
            item = wanted.get((flow.src, flow.sport)) if flow else None
            if flow and item:
                item.found(flow, prepare(flow), entry.mark)
        self.counts.no_flow += sum(item.flow is None for item in items_left)

    def _mark(self, items: list[_Item]) -> None:
        """Judge located claims in their order and carry the verdicts out."""
        marks: dict[Flow, int] = {}
        requests: dict[Flow, bytes] = {}
        fresh: dict[int, Owner] = {}
        gone: list[Owner] = []
        now = self._clock()
        for item in items:
            flow = item.flow
            assert flow is not None
            held = marks.get(flow, item.mark)
            try:
                mark = self._judge(item, flow, held, fresh, gone, now)
            except Exhausted as error:
                self.counts.exhausted += 1
                self._journal.limited("exhausted", str(error), ERROR)
                continue
            if mark != held:
                marks[flow] = mark
                requests[flow] = with_mark(item.request, mark)
        self._save(fresh.values(), gone)
        self._ensure(fresh.values())
        errors = self._conntrack.set_marks(list(requests.values()))
        self.counts.marked += len(requests) - len(errors)
        if self._early is not None and self._early.users.removed:
            self._write_early()  # the next connection from there may already be on its way
        for index, code in errors.items():
            if code == errno.ENOENT:
                self.counts.no_flow += 1
            else:
                flow = list(requests)[index]
                self._refused(KernelRefused(code, f"setting the mark of {flow}"))

    def _judge(
        self,
        item: _Item,
        flow: Flow,
        held: int,
        fresh: dict[int, Owner],
        gone: list[Owner],
        now: float,
    ) -> int:
        """The mark that ``flow`` shall have."""
        claim, counts = item.claim, self.counts
        free_text = self._is_free_text(flow)
        # What the kernel gave away in advance is nobody's until a line comes.
        early = held & TAG_MASK == self._tag | PROVISIONAL
        if claim.email == b"" and not free_text:
            if not early:
                return held
            if not claim.tainted:
                self._bar(item.source.address)
            counts.early_corrected += 1
            return 0
        bare = 0 if early else held
        email = claim.email.decode("utf-8", "replace") if claim.email else None
        place = (claim.email or b"") + b"\0" + address_key(item.source.address)
        owner = self._minors.by_key.get(email) if email is not None else None
        claimed = None if email is None else owner.minor if owner else 0
        if free_text:
            # What follows may be a stranger's: the line's end is what its author wrote.
            self._free_text_until = claim.position + FREE_TEXT_BYTES
        tainted = claim.tainted or free_text or self._behind_free_text(claim)
        vouched = not free_text and now - self._vouched.get(place, -VOUCH_S) < VOUCH_S
        verdict = judge(bare, self._tag, claimed, tainted, vouched, flow in self._soft)
        if verdict is Verdict.FOREIGN:
            counts.foreign_mark += 1
            self._journal.limited(
                "foreign", f"{flow} bears mark {held:#x} of other software; left as it is", NOTICE
            )
            return held
        self.resolver.learn(item.source, item.tag, flow)
        if verdict in (Verdict.GIVE, Verdict.KEEP) and not tainted:
            self._soft.pop(flow, None)
        if verdict is Verdict.KEEP:
            counts.kept += 1
            counts.ignored_tainted += tainted and held & MINOR_MASK != claimed
            if email is not None and claimed == held & MINOR_MASK:
                self._own(email, fresh, gone)  # who was collected meanwhile is back
                if not tainted:
                    self._remember(item, place, held, now)
            return held
        if verdict is Verdict.GIVE:
            assert email is not None
            mark = classid(self._settings.major, self._own(email, fresh, gone).minor)
            if tainted:
                _keep(self._soft, flow, mark)
            else:
                self._remember(item, place, mark, now)
        else:
            mark = self._restrict(item, flow, bare, verdict, fresh, gone)
        if early:
            counts.early_confirmed += mark == held & ~PROVISIONAL
            counts.early_corrected += mark != held & ~PROVISIONAL
        return mark

    def _behind_free_text(self, claim: Claim) -> bool:
        # Not below the window either: another file of the log counts from its own start.
        return self._free_text_until - FREE_TEXT_BYTES <= claim.position < self._free_text_until

    def _is_free_text(self, flow: Flow) -> bool:
        if self._settings.source == "webhook":
            return False  # no name can leave its place in JSON
        return any(low <= flow.dport <= high for low, high in self._settings.free_text_ports)

    def _restrict(
        self,
        item: _Item,
        flow: Flow,
        held: int,
        verdict: Verdict,
        fresh: dict[int, Owner],
        gone: list[Owner],
    ) -> int:
        """Into the class that the distrusted flows of one address share."""
        address = address_key(item.source.address).hex()
        owner = self._own(f"{RESTRICTED}{address}", fresh, gone)
        limits = [Limits(owner.up_bps, owner.down_bps)]
        if self._is_free_text(flow):
            limits.append(self._classes.policy.lowest())
        holder = self._minors.by_minor.get(held & MINOR_MASK)
        if holder is not None and holder is not owner:
            limits.append(self._classes.limits(holder))
        if item.claim.email:
            limits.append(self._classes.limits_of(item.claim.email.decode("utf-8", "replace")))
        lowest = lowest_of(limits)
        if lowest[:2] != (owner.up_bps, owner.down_bps):
            owner.up_bps, owner.down_bps = lowest[:2]
            fresh[owner.minor] = owner
        mark = classid(self._settings.major, owner.minor)
        if verdict is Verdict.CONFLICT:
            self.counts.conflicts += 1
            self._bar(item.source.address)
            for spelling in spellings(item.source):
                self._recent.pop(_key(spelling, item.claim.local), None)
            self._soft.pop(flow, None)
            _keep(self._doomed, flow, mark)
            self._journal.limited(
                "conflict",
                f"{flow} is claimed by two users; it goes into the restricted class of its "
                "address. Somebody forges log lines, or a port was reused",
                WARNING,
                flow=str(flow),
            )
        else:
            self.counts.restricted += 1
            _keep(self._soft, flow, mark)
            self._journal.limited(
                "distrust",
                f"{flow} is claimed behind text that a stranger wrote; restricted until a line "
                "that can be trusted",
                WARNING,
                flow=str(flow),
            )
        return mark

    def _own(self, key: str, fresh: dict[int, Owner], gone: list[Owner]) -> Owner:
        known = self._minors.by_key.get(key)
        if known is not None and known.state == ACTIVE:
            if not self._classes.has(known.minor):
                fresh[known.minor] = known
            return known
        owner, displaced = self._minors.take(key, self._clock())
        fresh[owner.minor] = owner
        if displaced is not None:
            gone.append(displaced)
        self.counts.new_owners += 1
        return owner

    def _remember(self, item: _Item, place: bytes, mark: int, now: float) -> None:
        """An untainted claim stands: fast path for its repetitions, voucher for tainted ones."""
        claim = item.claim
        assert claim.email is not None
        # Under no other spelling could a conflict find and forget it.
        if claim.source in spellings(item.source):
            if len(self._recent) >= _RECENT:
                for source in list(self._recent)[: _RECENT // 4]:
                    del self._recent[source]
            key = _key(claim.source, claim.local)
            self._young += key not in self._recent
            self._recent[key] = _Recent(claim.email, with_mark(item.request, mark))
        if len(self._vouched) >= _MAX_VOUCHES:
            self._vouched.clear()
        self._vouched[place] = now
        if self._early is not None:
            email = claim.email.decode("utf-8", "replace")
            self._early.users.saw(item.source.address, email, self._steady_clock())

    # -- early shaping --------------------------------------------------------------------------

    def tend_early(self) -> None:
        """Once a second: the maps of early shaping.  Raises Suspended."""
        if self._early is not None:
            with self._lock:
                self._refresh()
                self._write_early()

    def _write_early(self) -> None:
        assert self._early is not None
        try:
            self._early.tend(self._steady_clock(), self._mark_of)
        except KernelRefused as error:
            self._refused(error)

    def _mark_of(self, email: str) -> int | None:
        owner = self._minors.by_key.get(email)
        if owner is None or not self._is_shaped(owner):
            return None
        return classid(self._settings.major, owner.minor)

    def _may_be_early(self, claim: Claim) -> bool:
        """Whether the flow of a nameless claim may have been given away in advance."""
        if self._early is None:
            return False
        source = parse_source(claim.source)
        return source is not None and self._early.users.holds(source.address)

    def _bar(self, address: bytes) -> None:
        """More than one user comes from ``address``."""
        if self._early is not None:
            self._early.users.bar(address, self._steady_clock())

    def _is_unclaimed(self, mark: int | None) -> bool:
        """Whether a flow that exists bears no mark that a claim gave it."""
        return mark == 0 or (mark is not None and mark & TAG_MASK == self._tag | PROVISIONAL)

    # -- a conntrack table that others have flushed -----------------------------------------------

    def check_flush(self, now_s: float) -> int:
        """Once a second: notice ``conntrack -F`` and mark again; returns how many flows were.

        Flows come back with their next packet, unmarked, and no line tells.  A few flows are looked
        at: the last ones that were marked, and on a busy node, where those have begun behind the
        flush, some of all others.  If most of those that exist bear no mark, all are marked again,
        now and a few times more while silent flows wake up.
        """
        young, self._young = self._young, 0
        if now_s < self._remark_until:
            if now_s < self._remark_next:
                return 0
            self._remark_next = now_s + _REMARK_GAP_S
            return self._remark()
        last = list(islice(reversed(self._recent.values()), _SAMPLE))
        others = list(self._recent.values())[:-young] if young else []
        if not young and self._is_whole(last[:_FEW]):
            return 0
        spread = others[:: len(others) // _SAMPLE + 1]
        if not (self._is_flushed(last) or self._is_flushed(spread)):
            return 0
        self._remark_until, self._remark_next = now_s + _REMARK_S, now_s + 1
        return self._remark()

    def _is_whole(self, sample: list[_Recent]) -> bool:
        """Whether some of these flows are left, all with their marks: an idle node's cheap look."""
        marks = self._conntrack.get_marks([record.request for record in sample])
        left = [mark for mark in marks if mark is not None]
        return bool(left) and not any(map(self._is_unclaimed, left))

    def _is_flushed(self, sample: list[_Recent]) -> bool:
        marks = self._conntrack.get_marks([record.request for record in sample])
        lost = sum(self._is_unclaimed(mark) for mark in marks)
        return lost >= _SAMPLE_LOST and 2 * lost >= sum(mark is not None for mark in marks)

    def _remark(self) -> int:
        """Mark all flows marked lately that have lost their mark."""
        requests = [record.request for record in self._recent.values()]
        for flows in (self._soft, self._doomed):
            requests += [prepare(flow, mark) for flow, mark in flows.items()]
        marks = self._conntrack.get_marks(requests)
        lost = [
            request
            for request, mark in zip(requests, marks, strict=True)
            if self._is_unclaimed(mark)
        ]
        return len(lost) - len(self._conntrack.set_marks(lost))

    # -- classes --------------------------------------------------------------------------------

    def _ensure(self, owners: Iterable[Owner]) -> None:
        """Make or change the classes of ``owners`` on both devices."""
        for error in self._classes.ensure(owners):
            self._refused(error)

    def set_policy(self, policy: Policy) -> int:
        """New limits, in place: changes only classes that differ; returns how many."""
        with self._lock:
            self._refresh()
            owners = list(self._minors.by_minor.values())
            self._classes.set_policy(policy)
            for problem in self._classes.overrides.problems:
                self._journal.limited("config", problem, WARNING)
            self._classes.recount(owners)
            changed = self._classes.outdated(filter(self._is_shaped, owners))
            self._ensure(changed)
            return len(changed)

    def active(self) -> list[tuple[str, int]]:
        """(email, minor) of all users who have a class."""
        owners = self._minors.by_minor.values()
        return [(o.key, o.minor) for o in owners if o.key >= " " and self._is_shaped(o)]

    def counters(self, direction: int) -> dict[int, int]:
        """{minor: bytes sent} of all classes, of direction 0 (upload) or 1 (download)."""
        ifindex = self._classes.devices[direction]
        return self._tc.sent_bytes(ifindex, self._settings.major)

    def is_held(self, email: str) -> bool:
        """Whether a person has ordered something else for a user than the policy says."""
        live = self._classes.overrides.in_force(email, self._clock())
        return any(override.origin == OPERATOR for override, _layer in live)

    def order(self, begin: list[Override], end: Mapping[tuple[str, str], str]) -> None:
        """Put automatic overrides in force, end others: {(email, origin): why}.

        Raises StateError; then the kernel is as before.
        """
        with self._lock:
            self._refresh()
            ours = {(override.email, override.origin) for override in begin} | end.keys()
            known = self._classes.overrides.all()
            gone = [override for override in known if (override.email, override.origin) in end]
            self._state.save_overrides(begin)
            self._state.delete_overrides(gone)
            others = [o for o in known if (o.email, o.origin) not in ours]
            self._classes.set_overrides([*others, *begin])
            self._ensure(self._shaped({override.email for override in (*begin, *gone)}))
        for override in begin:
            message = describe_override(override, self._clock())
            self._tell("override", override, message, override.why)
        for override in gone:
            self._tell_end(override, end[override.email, override.origin])

    def _tell_end(self, override: Override, why: str) -> None:
        message = f"{override.email}: the override of {override.origin} is over: {why}"
        self._tell("override_ended", override, message, why)

    def _tell(self, kind: str, override: Override, message: str, why: str) -> None:
        fields = {"email": override.email, "origin": override.origin, "why": why}
        self._journal.event(kind, message, NOTICE, **fields)

    def keep_time(self) -> None:
        """Once a second: take over what other processes ordered, end overrides in time."""
        if self._state.version() != self._version:
            with self._lock:
                self._refresh()
        end = self._classes.overrides.next_end()
        if end is None or end > self._clock():
            return
        with self._lock:
            self._refresh()
            self._end_overrides()

    def _end_overrides(self) -> None:
        now = self._clock()
        known = self._classes.overrides.all()
        ended = [override for override in known if override.ends_by(now)]
        self._ensure(self._shaped({override.email for override in ended}))
        try:
            self._state.delete_overrides(ended)
        except StateError as error:
            self._journal.limited("state", f"{error}; ended overrides stay listed", ERROR)
            return
        self._classes.set_overrides(o for o in known if o not in ended)
        for override in ended:
            self._tell_end(override, "its time is up")

    # -- trouble --------------------------------------------------------------------------------

    def _save(self, owners: Iterable[Owner], gone: Iterable[Owner]) -> None:
        """Write owners; a full disk stops nobody: they are kept and written later."""
        self._unsaved.update((owner.key, owner) for owner in owners)
        gone = list(gone)
        if not self._unsaved and not gone:
            return
        try:
            self._state.save_owners(self._unsaved.values(), gone)
        except StateError as error:
            self._journal.limited(
                "state",
                f"{error}; limits hold, {len(self._unsaved)} users are not saved yet",
                ERROR,
            )
        else:
            self._unsaved.clear()

    def flush(self) -> None:
        """Try again to write what could not be written."""
        if self._unsaved:
            with self._lock:
                self._save([], [])

    def _refused(self, error: KernelRefused) -> None:
        self.wants_repair = True
        self._journal.limited("kernel", f"{error}; repairing", ERROR)

    def snapshot(self) -> dict[str, int]:
        """Counters for ``status``."""
        counts = {**vars(self.counts), "users": self.users, "pid": os.getpid()}
        if self._early is not None:
            counts["early_addresses"] = self._early.elements
            counts["early_expired"] = self._early.expired
        return counts
