"""From claims to marks: the path this program exists for.

Order within one round: hear what the kernel says of flows, let each claim meet its flow, judge,
save new owners, make their classes, set the marks.  A mark never names a class that is not there,
and a crash between two steps leaves nothing that the next start does not adopt.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..core.claims.accesslog import (
    FREE_TEXT_BYTES,
    Claim,
    client_end,
    spellings_of,
    taint_authors,
)
from ..core.claims.stamp import written
from ..core.claims.trust import (
    DOUBTED,
    HINTED,
    PLAIN,
    TOLD,
    VOUCHED,
    WEAK,
    Verdict,
    Vouchers,
    address_key,
    judge,
)
from ..core.flows.meeting import Local, Written, meet
from ..core.flows.mirror import Heard, Held
from ..core.flows.record import (
    END,
    FOREIGN,
    MINOR,
    PROVISIONAL,
    REMEMBERED,
    RESTRICTED,
    owned,
    port,
    rank,
    unowned,
)
from ..core.owners import ACTIVE, Owner
from ..core.policy.model import Policy
from ..core.policy.overrides import Override
from ..core.settings import Settings
from ..errors import Exhausted, KernelRefused
from ..journal import ERROR, NOTICE, WARNING, Journal
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.netlink import MAX_BATCH
from ..kernel.packed.tc import Tc
from ..lock import Lock
from ..shaping import Classes, Listed
from ..state import State
from .adopt import adopt
from .early import EarlyShaping
from .flow_table import FlowTable
from .known import KnownWords, Word
from .orders import Orders
from .plain_words import End, PlainWords
from .pool import Pool
from .registry import Registry, Suspended
from .restriction import Restriction

#: So many new flows of a round are looked at for marks of other software; once one was seen, all.
_LOOKED_AT, _CAREFUL_S = 16, 3_600.0

__all__ = ["Assigner", "Counts", "Suspended"]


@dataclass
class Counts:
    """What became of the claims."""

    marked: int = 0
    kept: int = 0
    no_flow: int = 0
    no_source: int = 0
    stale: int = 0
    restricted: int = 0
    conflicts: int = 0
    ignored_tainted: int = 0
    foreign_mark: int = 0
    new_owners: int = 0
    exhausted: int = 0
    restored: int = 0
    handed_on: int = 0
    ambiguous_udp: int = 0
    early_confirmed: int = 0
    early_corrected: int = 0


class _Given(NamedTuple):
    """A flow that a round has given away, as it was and as it shall be."""

    client: bytes
    before: int
    after: int
    #: What to remember of it: the claim whose repetitions then mean the same flow.
    claim: Claim | None


class _Round:
    """What one round of claims leads to: the last word on each flow counts."""

    def __init__(self) -> None:
        self.given: dict[tuple[bytes, int], _Given] = {}

    def give(self, client: bytes, before: int, after: int, claim: Claim | None) -> None:
        """The flow shall be as ``after`` says."""
        name = client, before & END
        earlier = self.given.get(name)
        if earlier is not None:
            before = earlier.before
        self.given[name] = _Given(client, before, after, claim)


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
        addresses: Iterable[bytes],
        clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``devices`` are the interface indexes of (IFB, WAN): upload and download;
        ``addresses`` our own, packed."""
        self.counts = Counts()
        self._settings, self._lock, self._journal = settings, lock, journal
        self._steady_clock = steady_clock
        self._tag = settings.major << 16
        self._conntrack, self._tc = Conntrack(), Tc()
        classes = Classes(settings, policy, self._tc, devices, clock)
        pool_min = settings.gc.pool_min
        self._registry = Registry(
            settings.major, state, lock, classes, journal, clock, pool_min // 2
        )
        self._pool, self._clock = Pool(self._registry, pool_min, steady_clock), clock
        self._orders = Orders(state, self._registry, journal, clock)
        self._restriction = Restriction(settings, self._registry)
        self._flows = FlowTable(
            settings, addresses, self._conntrack, journal, self._restriction.is_restricted,
            steady_clock,
        )  # fmt: skip
        self._early = (
            EarlyShaping(settings.major, self._conntrack) if settings.early_shaping else None
        )
        self._known = KnownWords()
        self._vouchers = Vouchers()
        self._plain = TOLD if settings.source == "webhook" else PLAIN
        self._plain_words = PlainWords(
            self._plain, self._registry, self._flows, self._known, self._vouchers,
            self._conntrack, self._early,
        )  # fmt: skip
        # Whether lines of some inbounds hold names that the engine did not check.
        self._free_text = bool(settings.free_text_ports) and settings.source != "webhook"
        self._free_text_until = 0
        self._careful_until = self._round_s = 0.0
        self._window: tuple[float, float] = (0.0, 0.0)
        self._epoch_offset_s: float | None = None

    def close(self) -> None:
        """Release sockets."""
        self._flows.close()
        self._conntrack.close()
        self._tc.close()
        if self._early is not None:
            self._early.close()

    def fileno(self) -> int:
        """Readable when the kernel has told of flows; -1 while it does not."""
        return self._flows.fileno()

    @property
    def port_ids(self) -> tuple[int, int]:
        """Netlink port ids of our sockets: changes they make are our own."""
        return self._tc.netlink.port_id, self._conntrack.netlink.port_id

    @property
    def users(self) -> int:
        """Active owners."""
        return self._registry.users

    @property
    def wants_repair(self) -> bool:
        """The kernel has refused something."""
        return self._registry.wants_repair

    @wants_repair.setter
    def wants_repair(self, value: bool) -> None:
        self._registry.wants_repair = value

    def set_devices(self, devices: tuple[int, int]) -> None:
        """Indexes of (IFB, WAN) after a repair; ``adopt`` must follow."""
        self._registry.classes.devices = devices

    def set_addresses(self, addresses: Iterable[bytes]) -> None:
        """Our addresses have changed.  Raises Suspended."""
        with self._lock:
            self._refresh()
            self._carry_out(self._flows.set_addresses(addresses))

    # -- what is there ----------------------------------------------------------------------------

    def adopt(self) -> int:
        """Take over the state and what the kernel has; returns the number of live marked flows.

        Raises Suspended, KernelRefused.
        """
        with self._lock:
            heard = Heard()
            listed = self._load()
            if self._registry.is_suspended():
                raise Suspended
            keep_early = self._early is not None
            marked = adopt(
                self._conntrack, self._registry, self._flows, self._tag, keep_early, heard
            )
            now = self._steady_clock()
            mirror = self._flows.mirror
            for client, record in mirror.claimed_flows():
                if not record & (RESTRICTED | PROVISIONAL) and rank(record) == WEAK:
                    # Whoever had a flow from there before has it still.
                    self._vouchers.saw(record & MINOR, client[:-2], now)
            self._carry_out(heard)
            # The policy may have changed, or an override ended, while nobody looked.
            wanted = mirror.wanted_minors()
            registry = self._registry
            owners = [
                owner
                for owner in registry.minors.by_minor.values()
                if owner.minor in marked or owner.minor in wanted or registry.is_shaped(owner)
            ]
            registry.ensure(registry.classes.outdated(owners, listed))
            return sum(marked.values())

    def _load(self) -> Listed:
        """Read owners, classes and orders anew: at start, and after another process has written."""
        registry = self._registry
        listed = registry.load()
        self._known.keep(self._still_holds)
        if self._early is not None:
            self._early.renew()
        up, down = listed
        self._orders.load(up.keys() & down.keys())
        registry.loaded()
        return listed

    def _still_holds(self, word: Word) -> bool:
        owner = self._registry.of_email(word.email)
        records = self._flows.mirror.find(word.client)
        return (
            owner is not None
            and owner.state == ACTIVE
            and any(record & MINOR == owner.minor for record in records)
        )

    def _refresh(self) -> None:
        """See what other processes did; under the lock, without which none of them writes."""
        if not self._registry.is_current:
            self._load()
            if self._registry.is_suspended():
                raise Suspended
        self._lock.changed_hands = False

    # -- what the kernel says ---------------------------------------------------------------------

    def listen(self) -> None:
        """Flows have come or gone.  Raises Suspended."""
        heard = self._flows.drain()
        if heard.restore or heard.handed_on or heard.ambiguous or heard.forgotten or heard.foreign:
            with self._lock:
                self._refresh()
                self._carry_out(heard)

    def _carry_out(self, heard: Heard) -> None:
        """Set marks that are missing, hand on those of flows that continue others."""
        for client in heard.forgotten:
            self._forget(client)
        if heard.foreign:
            self._careful_until = self._steady_clock() + _CAREFUL_S
        mirror, counts = self._flows.mirror, self.counts
        wanted: list[Held] = []
        for held in (*heard.restore, *heard.handed_on):
            owner = self._registry.owner(held[1] & MINOR)
            if owner is not None and self._registry.is_shaped(owner):
                wanted.append(held)
            else:
                mirror.put(held[0], unowned(held[1]))
        counts.restored += len(heard.restore)
        counts.handed_on += len(heard.handed_on)
        counts.ambiguous_udp += len(heard.ambiguous)
        if self._settings.unknown_udp == "restrict":
            for client, record in heard.ambiguous:
                owner = self._restriction.shared(client[:-2])
                restricted = owned(record, owner.minor, DOUBTED, RESTRICTED)
                mirror.put(client, restricted)
                wanted.append((client, restricted))
            self._registry.commit()
        if wanted:
            errors = self._conntrack.set_marks(
                [self._flows.request(c, r, mirror.mark(r)) for c, r in wanted]
            )
            for index, code in errors.items():
                self._not_marked(*wanted[index], code)

    def _not_marked(self, client: bytes, record: int, code: int) -> None:
        self._flows.mirror.remove(client, record)
        self._forget(client)
        if code == errno.ENOENT:
            self.counts.no_flow += 1
            return
        name = self._flows.mirror.flow(client, record)
        self._registry.refused(KernelRefused(code, f"setting the mark of {name}"))

    def _forget(self, client: bytes) -> None:
        """No repetition of words on flows from this end is known any more."""
        self._known.forget((client, *spellings_of(client)))

    # -- claims -----------------------------------------------------------------------------------

    def assign(
        self,
        claims: Iterable[Claim],
        window: tuple[float, float] | None = None,
        epoch_offset_s: float | None = None,
    ) -> None:
        """Mark the flows of ``claims``.  Raises Suspended; kernel refusals are counted and told.

        They were made within ``window`` of the steady clock (by default within the last second),
        and their stamps count with ``epoch_offset_s``, see `stamp.written`.
        """
        now = self._steady_clock()
        self._window = window or (now - 1.0, now)
        self._epoch_offset_s = epoch_offset_s
        with self._lock:
            if self._lock.changed_hands:
                self._refresh()
            self._carry_out(self._flows.drain())
            repeated: dict[Word, Claim] = {}
            others: list[Claim] = []
            words = self._known.words
            for claim in claims:
                word = words.get(claim[0])
                if (
                    word is not None
                    and word.email == claim[2]
                    and not claim[3]
                    and claim[6] is None
                ):
                    repeated[word] = claim
                else:
                    others.append(claim)
            if repeated:
                others += self._repeat(repeated)
            for start in range(0, len(others), MAX_BATCH):
                self._give(others[start : start + MAX_BATCH])

    def _repeat(self, repeated: dict[Word, Claim]) -> list[Claim]:
        """Set marks of known words again; returns the claims whose flow is not there."""
        errors = self._conntrack.set_marks([word.request for word in repeated])
        self.counts.marked += len(repeated) - len(errors)
        if not errors:
            return []
        words, claims = list(repeated), list(repeated.values())
        for index, code in errors.items():
            for record in self._flows.mirror.find(words[index].client):
                self._flows.mirror.remove(words[index].client, record)
            self._forget(words[index].client)
            if code != errno.ENOENT:
                name = spellings_of(words[index].client)[0].decode()
                what = f"setting the mark of {name}"
                self._registry.refused(KernelRefused(code, what))
        return [claims[index] for index in errors]

    def _give(self, claims: list[Claim]) -> None:
        """One round: each claim meets its flow, is judged, and the marks are set."""
        self._round_s = self._steady_clock()
        ends = [(claim, client_end(claim)) for claim in claims]
        if self._flows.may_miss:
            self._look_up(ends)
        self._look_at_marks(ends)
        round_ = _Round()
        if not self._free_text:
            now = self._steady_clock()
            ends, marked = self._plain_words.give(ends, now, self._not_marked)
            self.counts.marked += marked
        for claim, client in ends:
            self._judge(claim, client, round_)
        self._finish(round_)

    def _look_up(self, ends: list[End]) -> None:
        """Ask for flows that the mirror may have missed."""
        find, tag = self._flows.mirror.find, self._flows.tags.tag
        wanted = [(c, tag(claim.detour)) for claim, c in ends if c is not None and not find(c)]
        if wanted:
            self._flows.look_up(wanted)

    def _look_at_marks(self, ends: list[End]) -> None:
        """See which flows that are nobody's bear a mark of other software, or one in advance.

        Not all of a burst are looked at, unless marks have been seen here that are not ours: it
        would cost more than all the rest.
        """
        now, mirror = self._steady_clock(), self._flows.mirror
        careful = self._early is not None or now < self._careful_until
        some = ends if careful else ends[:: len(ends) // _LOOKED_AT + 1]
        held = {
            (client, record): self._flows.request(client, record, 0)
            for _claim, client in some
            if client is not None
            for record in mirror.find(client)
            if not record & (MINOR | FOREIGN)
        }
        if not held:
            return
        marks = self._conntrack.get_marks(list(held.values()))
        foreign = False
        for (client, record), mark in zip(held, marks, strict=True):
            if mark:
                foreign |= mirror.correct(client, record, mark)
        if foreign:
            self._careful_until = now + _CAREFUL_S
            if not careful:
                self._look_at_marks(ends)

    def _judge(self, claim: Claim, client: bytes | None, round_: _Round) -> None:
        """One claim, by the rules of trust."""
        counts, mirror = self.counts, self._flows.mirror
        if client is None:
            counts.no_source += 1
            return
        records = mirror.find(client)
        tag = self._flows.tags.tag(claim.detour)
        if not records:
            counts.no_flow += 1
            if self._free_text:
                self._taint_after(claim, mirror.last_port(client))
            return
        # What this round has said of them already.
        records = tuple(
            given.after if (given := round_.given.get((client, r & END))) else r for r in records
        )
        named = self._registry.of_email(claim.email) if claim.email else None
        end = claim.local
        local = Local(end.port, mirror.address_number(end.address)) if end is not None else None
        meeting = meet(
            records, named.minor if named else 0, tag, local, self._flows.tags,
            lambda: self._when(claim), mirror.earliest_ms,
        )  # fmt: skip
        if meeting is None:
            counts.stale += 1
            return
        record = meeting.record
        free_text = self._is_free_text(port(record))
        if self._free_text:
            self._taint_after(claim, port(record))
        if claim.email == b"" and not free_text:
            # A line without a user claims nothing where names are checked.
            if record & PROVISIONAL:
                if not claim.tainted:
                    self._bar(client)
                counts.early_corrected += 1
                round_.give(client, record, unowned(record), None)
            return
        word_rank = self._rank(claim, client, named, meeting.certain)
        if free_text:
            self._restrict_free_text(client, record, round_)
            return
        claimed = None if claim.email is None else named.minor if named else 0
        verdict = judge(record, claimed, word_rank)
        if verdict is Verdict.FOREIGN:
            self._tell_foreign(client, record)
        elif verdict is Verdict.KEEP:
            counts.kept += 1
            if claimed != record & MINOR:
                counts.ignored_tainted += bool(claim.tainted)
            elif claim.email:
                owner = self._registry.own(named.key if named else "")
                # After a restart nothing else is there to learn from for a while.
                self._learn(tag, client, records, word_rank)
                if word_rank >= PLAIN:
                    self._witness(client, owner)
                    if len(records) == 1:
                        round_.give(client, record, record, claim)
        elif verdict is Verdict.GIVE:
            assert claim.email
            try:
                owner = self._registry.own_email(claim.email)
            except Exhausted as error:
                self._share(client, record, error, round_)
                return
            self._count_early(record, owner.minor)
            after = owned(record, owner.minor, word_rank)
            remembered = claim if word_rank >= PLAIN and len(records) == 1 else None
            if word_rank >= PLAIN:
                self._witness(client, owner)
            self._learn(tag, client, records, word_rank)
            round_.give(client, record, after, remembered)
        else:
            self._restrict(claim, client, record, verdict, word_rank, round_)

    def _learn(self, tag: bytes, client: bytes, records: Sequence[int], word_rank: int) -> None:
        """Where the inbound of a tag listens, from a word that can have meant one flow only."""
        if word_rank >= WEAK and len(records) == 1 and not self._flows.mirror.last_port(client):
            self._flows.tags.learn(tag, records[0])

    def _share(self, client: bytes, record: int, error: Exhausted, round_: _Round) -> None:
        """All minors are taken: a newcomer's flow goes where all newcomers' do, for now."""
        self.counts.exhausted += 1
        self._journal.limited("exhausted", str(error), ERROR)
        owner = self._registry.own_overflow()
        after = owned(record, owner.minor, DOUBTED, RESTRICTED)
        if after != record:
            round_.give(client, record, after, None)

    def _rank(self, claim: Claim, client: bytes, named: Owner | None, certain: bool) -> int:
        if not claim.tainted and not self._is_after_free_text(claim):
            return self._plain if certain else WEAK
        if named is None:
            return DOUBTED
        if not self._vouchers.vouch(named.minor, client[:-2], self._steady_clock()):
            return DOUBTED
        return HINTED if self._is_inside(claim, client) else VOUCHED

    def _is_inside(self, claim: Claim, client: bytes) -> bool:
        """Whether who wrote the text that taints a claim may have the flow that it names."""
        authors = taint_authors(claim)
        place, mirror = address_key(client[:-2]), self._flows.mirror
        return not authors or any(
            address_key(author[:-2]) == place
            and (author is authors[0] or bool(mirror.find(author) or mirror.last_port(author)))
            for author in authors
        )

    def _when(self, claim: Claim) -> Written:
        """When a claim was made."""
        return self._flows.written(*written(claim.time, *self._window, self._epoch_offset_s))

    def _witness(self, client: bytes, owner: Owner) -> None:
        """A plain word stands: it vouches for its user at this address."""
        self._vouchers.saw(owner.minor, client[:-2], self._steady_clock())
        if self._early is not None:
            self._early.users.saw(client[:-2], owner.key, self._steady_clock())

    def _restrict(
        self,
        claim: Claim,
        client: bytes,
        record: int,
        verdict: Verdict,
        word_rank: int,
        round_: _Round,
    ) -> None:
        """Into a class that the flows in doubt of one address share."""
        conflict = verdict is Verdict.CONFLICT
        inside = not conflict and self._is_inside(claim, client)
        owner = self._restriction.of(client[:-2], record, claim.email, inside)
        after = owned(record, owner.minor, word_rank if conflict else rank(record), RESTRICTED)
        if record & PROVISIONAL or not record & MINOR:
            after = owned(record, owner.minor, DOUBTED, RESTRICTED)
        self._count_early(record, owner.minor)
        if conflict:
            self.counts.conflicts += 1
            self._bar(client)
        else:
            self.counts.restricted += 1
        if after == record:
            return
        round_.give(client, record, after, None)
        flow = self._flows.mirror.flow(client, record)
        if conflict:
            self._journal.limited(
                "conflict",
                f"{flow} is claimed by two users; it goes into a restricted class of its "
                "address. Somebody forges log lines, or a port was reused",
                WARNING,
                flow=str(flow),
            )
        else:
            self._journal.limited(
                "distrust",
                f"{flow} is claimed within reach of text that a stranger wrote; restricted until "
                "a line that can be trusted",
                WARNING,
                flow=str(flow),
            )

    def _restrict_free_text(self, client: bytes, record: int, round_: _Round) -> None:
        """What is said in an inbound that checks no names counts for nobody."""
        if record & FOREIGN:
            self._tell_foreign(client, record)
            return
        owner = self._restriction.lowest(client[:-2])
        after = owned(record, owner.minor, TOLD, RESTRICTED)
        self._count_early(record, owner.minor)
        self.counts.restricted += 1
        if after != record:
            round_.give(client, record, after, None)

    # -- names that were not checked --------------------------------------------------------------

    def _is_free_text(self, our_port: int) -> bool:
        return self._free_text and any(
            low <= our_port <= high for low, high in self._settings.free_text_ports
        )

    def _taint_after(self, claim: Claim, our_port: int) -> None:
        """What follows a line of such an inbound (0: nobody knows which) may be a stranger's."""
        if not our_port or self._is_free_text(our_port):
            self._free_text_until = claim.position + FREE_TEXT_BYTES

    def _is_after_free_text(self, claim: Claim) -> bool:
        # Not below the window either: another file of the log counts from its own start.
        return self._free_text_until - FREE_TEXT_BYTES < claim.position < self._free_text_until

    # -- carrying out -----------------------------------------------------------------------------

    def _finish(self, round_: _Round) -> None:
        """Save, make classes, set marks, remember."""
        registry, mirror = self._registry, self._flows.mirror
        registry.commit()
        for minor in registry.displaced:
            # Not later: in this round a word may have vouched for the new owner.
            self._vouchers.passed_on(minor, self._round_s)
        registry.displaced.clear()
        given = list(round_.given.values())
        requests = [self._flows.request(g.client, g.after, mirror.mark(g.after)) for g in given]
        errors = self._conntrack.set_marks(requests) if requests else {}
        self.counts.marked += sum(g.before & MINOR != g.after & MINOR for g in given)
        for index, (client, before, after, claim) in enumerate(given):
            if index in errors:
                self._not_marked(client, after, errors[index])
            elif claim is not None:
                remembered = 0
                if claim.local is None:
                    self._known.learn(claim.source, claim.email or b"", requests[index], client)
                    remembered = REMEMBERED
                mirror.put(client, after | remembered)
            else:
                if before & REMEMBERED:
                    self._forget(client)
                mirror.put(client, after)
        if self._early is not None and self._early.users.removed:
            self._write_early()  # the next connection from there may already be on its way

    def _tell_foreign(self, client: bytes, record: int) -> None:
        self.counts.foreign_mark += 1
        flow = self._flows.mirror.flow(client, record)
        self._journal.limited(
            "foreign", f"{flow} bears a mark of other software; left as it is", NOTICE
        )

    # -- classes in advance -----------------------------------------------------------------------

    @property
    def pool_due(self) -> float | None:
        """When to `fill_pool` if no claims come, by the steady clock; None: not soon."""
        return self._pool.due

    def fill_pool(self) -> None:
        """Make some classes before they are needed.  Raises Suspended."""
        if self._pool.has_work:
            with self._lock:
                self._refresh()
                self._pool.work(self._clock())

    # -- early shaping ----------------------------------------------------------------------------

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
            self._registry.refused(error)

    def _mark_of(self, email: str) -> int | None:
        owner = self._registry.minors.by_key.get(email)
        if owner is None or not self._registry.is_shaped(owner):
            return None
        return self._tag | owner.minor

    def _bar(self, client: bytes) -> None:
        """More than one user comes from an address."""
        if self._early is not None:
            self._early.users.bar(client[:-2], self._steady_clock())

    def _count_early(self, record: int, minor: int) -> None:
        """A word has come for a flow that was given away in advance."""
        if record & PROVISIONAL:
            self.counts.early_confirmed += record & MINOR == minor
            self.counts.early_corrected += record & MINOR != minor

    # -- once a second ----------------------------------------------------------------------------

    def tend_flows(self) -> None:
        """Once a second: what keeps the mirror true.  Raises Suspended."""
        heard = self._flows.tend()
        with self._lock:
            self._refresh()
            self._carry_out(heard)

    def keep_time(self) -> None:
        """Once a second: take over what other processes ordered, end overrides in time."""
        if not self._registry.is_current:
            with self._lock:
                self._refresh()
        if self._orders.is_due:
            with self._lock:
                self._refresh()
                self._orders.end_due()

    def flush(self) -> None:
        """Try again to write what could not be written."""
        self._registry.flush()

    # -- policy, orders, counters -----------------------------------------------------------------

    def set_policy(self, policy: Policy) -> int:
        """New limits, in place: changes only classes that differ; returns how many."""
        with self._lock:
            self._refresh()
            registry = self._registry
            owners = list(registry.minors.by_minor.values())
            registry.classes.set_policy(policy)
            self._orders.complain()
            registry.classes.recount(owners)
            changed = registry.classes.outdated(filter(registry.is_shaped, owners))
            registry.ensure(changed)
            return len(changed)

    def active(self) -> list[tuple[str, int]]:
        """(email, minor) of all users who have a class."""
        return self._registry.active()

    def counters(self, direction: int) -> dict[int, int]:
        """{minor: bytes sent} of all classes, of direction 0 (upload) or 1 (download)."""
        ifindex = self._registry.classes.devices[direction]
        return self._tc.sent_bytes(ifindex, self._settings.major)

    def is_held(self, email: str) -> bool:
        """Whether a person has ordered something else for a user than the policy says."""
        return self._orders.is_held(email)

    def order(self, begin: list[Override], end: Mapping[tuple[str, str], str]) -> None:
        """Put automatic overrides in force, end others: {(email, origin): why}.

        Raises StateError; then the kernel is as before.
        """
        with self._lock:
            self._refresh()
            self._orders.order(begin, end)

    def snapshot(self) -> dict[str, int | str]:
        """Counters for ``status``."""
        flows = self._flows
        counts: dict[str, int | str] = {
            **vars(replace(self.counts, new_owners=self._registry.new_owners)),
            "users": self.users,
            "flows_known_by": flows.way,
            "flows_known": flows.mirror.size,
            "flows_claimed": flows.mirror.claimed,
            "flows_lost_events": flows.losses,
            "flows_looked_up": flows.look_ups,
            "flows_not_looked_up": flows.skipped,
        }
        if self._early is not None:
            counts["early_addresses"] = self._early.elements
            counts["early_expired"] = self._early.expired
        return counts
