"""From claims to marks: the path this program exists for.

Order within one round: hear what the kernel says of flows, let each claim meet its flow, judge,
save new owners, make their classes, set the marks.  A mark never names a class that is not there,
and a crash between two steps leaves nothing that the next start does not adopt.

Longer than 400 lines: the steps of one round share what they know of its flows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from operator import itemgetter

from ..core import events
from ..core.claims.accesslog import (
    Claim,
    Stranger,
    client_ends,
)
from ..core.claims.email import qualified
from ..core.claims.trust import (
    WEAK,
    Vouchers,
)
from ..core.flows.mirror import Heard, Held
from ..core.flows.record import (
    MINOR,
    PROVISIONAL,
    RESTRICTED,
    port,
    rank,
)
from ..core.htb import ENDED_MINOR
from ..core.identities import Identities
from ..core.minor_table import MinorTable
from ..core.names import Names
from ..core.owners import ACTIVE
from ..core.policy.model import Policy
from ..core.policy.overrides import Override
from ..core.settings import Settings
from ..errors import KernelRefused
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.tc import Tc
from ..lock import Lock
from ..name_hashing import keep_names
from ..render import tell_limits
from ..shaping import Classes, Listed
from ..sources.clock import Clock
from ..state import State, StateError
from .adopt import adopt
from .awaited import Early
from .balancing import Balancing
from .bookkeeping import Bookkeeping
from .early import EarlyShaping
from .flood_guard import FloodGuard
from .flow_limits import FlowLimits
from .flow_table import FlowTable
from .joining import People
from .judging import Judging
from .known import EMAIL, KnownWords
from .marking import Marking
from .orders import Orders
from .plain_words import End, PlainWords
from .pool import Pool
from .registry import Registry, Suspended
from .round import Counts, Round
from .statics import Statics
from .voice import Voice

__all__ = ["Assigner", "Suspended"]

#: The first field of a claim.
_SOURCE = itemgetter(0)
#: So many claims are judged before the marks of the first are set: 2 to 4 ms.
_ROUND = 1_024
#: So many entries of the policy that count for nobody are named.
_SHOWN = 20


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
        names: Names | None = None,
        identities: Identities | None = None,
        wall_clock: Clock | None = None,
    ) -> None:
        """``devices`` are the interface indexes of (IFB, WAN): upload and download;
        ``addresses`` our own, packed; ``wall_clock`` as of `FlowTable`."""
        self.counts = Counts()
        self._settings, self._lock, self._journal = settings, lock, journal
        self._state = state
        self._steady_clock = steady_clock
        self._layout = settings.layout
        self._conntrack, self._tc = Conntrack(), Tc()
        classes = Classes(settings, policy, self._tc, devices, clock)
        pool_min = settings.gc.pool_min
        self._registry = Registry(
            self._layout, state, lock, classes, journal, clock, pool_min // 2, names
        )
        self._pool, self._clock = Pool(self._registry, pool_min, steady_clock), clock
        self._orders = Orders(state, self._registry, journal, clock)
        self._books = Bookkeeping(settings, state, self._registry, journal, clock)
        self._flows = FlowTable(
            settings, addresses, self._conntrack, journal, self._registry.is_restricted,
            steady_clock, wall_clock,
        )  # fmt: skip
        self._early = (
            EarlyShaping(self._layout, self._conntrack) if settings.early_shaping else None
        )
        self._may_be_outdated = False
        self._statics = Statics(
            settings, identities or Identities(), self._registry, self._conntrack, state, journal
        )
        #: By the number of the source among those of the settings.
        direct: set[int] = set()
        self._voices = [Voice(settings, source, direct) for source in settings.sources]
        self._known = KnownWords(self._voices)
        self._vouchers = Vouchers()
        self._judging = Judging(
            settings, self._voices[0], self._registry, self._flows, self._vouchers, self._early,
            self.counts, journal, steady_clock,
        )  # fmt: skip
        self._guard = (
            FloodGuard(self._flows.mirror, journal, steady_clock)
            if settings.flood_guard and settings.service_ports and settings.reads_text
            else None
        )
        self._marking = Marking(
            settings, self._registry, self._flows, self._known, self._vouchers, self._conntrack,
            self.counts, self._judging.shared, steady_clock,
        )  # fmt: skip
        self._people = People(
            self._layout, self._registry, self._flows, self._marking, self._known,
            self._conntrack, state, journal, clock,
        )  # fmt: skip
        self._people.want(self._statics.identities.people)
        self._limits = FlowLimits(
            self._layout, self._registry, self._flows, self._marking, self._conntrack, journal,
            steady_clock,
        )  # fmt: skip
        self._balancing = Balancing(
            self._layout, self._registry, self._flows, self._marking, journal, steady_clock
        )
        self._plain_words = PlainWords(
            self._voices[0], self._registry, self._flows, self._known, self._vouchers,
            self._conntrack, self._early, self.counts, self._judging.when, self._marking.failed,
        )  # fmt: skip
        self._listen_to(0)

    def _listen_to(self, speaker: int) -> None:
        """The claims that come now are of this source, by its number among the settings'."""
        voice = self._voices[speaker]
        self._judging.voice = self._plain_words.voice = self._known.voice = voice
        self._flows.tags, self._vouchers.speaker = voice.tags, speaker

    def close(self) -> None:
        """Release sockets."""
        self._flows.close()
        self._conntrack.close()
        self._tc.close()
        self._statics.close()
        if self._guard is not None:
            self._guard.close()
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
    def not_found(self) -> Iterable[bytes]:
        """Ends of clients whose claims named no flow, the latest last."""
        return self._judging.not_found

    @property
    def void_orders(self) -> list[str]:
        """Temporary orders that the policy does not allow, a sentence each."""
        return self._registry.classes.overrides.problems

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
            self._marking.carry_out(self._flows.set_addresses(addresses))

    # -- what is there ----------------------------------------------------------------------------

    def adopt(self, later: bool = False) -> int:
        """Take over the state and what the kernel has; returns the number of live marked flows.

        ``later``: no mark is to wait for a look at all limits; `change_outdated` must follow.
        Raises Suspended, KernelRefused.
        """
        with self._lock:
            heard = Heard()
            listed = self._load()
            if self._registry.is_suspended():
                raise Suspended
            if self._people.renew() and self._early is not None:
                self._early.forget()
            self._statics.renew()
            self._give_statics()
            keep_early = self._early is not None
            marked = adopt(
                self._conntrack, self._registry, self._flows, self._layout, keep_early, heard
            )
            now = self._steady_clock()
            mirror = self._flows.mirror
            # Whoever had a flow from there before has it still.
            for number in range(len(self._voices)):
                self._vouchers.speaker = number
                self._vouchers.saw(self._adopted_of(number), now)
            self._marking.carry_out(heard)
            self._renew_limits()
            wanted = marked.keys() | mirror.wanted_minors()
            if later:
                self._may_be_outdated = True
                # Whose class is not there has no limit at all: that does not wait.
                registry = self._registry
                owners = registry.minors.by_minor.values()
                missing = (o for o in owners if o.minor in wanted)
                registry.ensure(o for o in missing if not registry.classes.has(o.minor))
            else:
                self._change_outdated(wanted, listed)
        if self._state.accounts.read_at(0) is None:
            # The very first time counters are noted, before anybody moves more.
            self.tend_accounts()
            self.tend_accounts()
        return sum(marked.values())

    def _adopted_of(self, speaker: int) -> Iterator[Held]:
        """Flows that a source may have given away before we came.

        Those of people who may be another source's are left out: `Vouchers` says why.
        """
        registry, mirror = self._registry, self._flows.mirror
        owners = map(registry.minors.by_key.get, registry.persons)
        people = {owner.minor for owner in owners if owner is not None}
        heard = [voice.ports for voice in self._voices]
        for client, record in mirror.claimed_flows():
            if record & (RESTRICTED | PROVISIONAL) or rank(record) != WEAK:
                continue
            speakers = [n for n, ports in enumerate(heard) if ports is None or ports[port(record)]]
            if speaker in speakers and (len(speakers) == 1 or record & MINOR not in people):
                yield client, record

    def change_outdated(self) -> None:
        """Once after `adopt` has left it for later: limits that changed while nobody looked.

        Raises Suspended.
        """
        if not self._may_be_outdated:
            return
        self._may_be_outdated = False
        try:
            with self._lock:
                self._refresh()
                self._change_outdated(self._flows.mirror.wanted_minors())
        except KernelRefused as error:
            self._registry.refused(error)

    def _change_outdated(self, wanted: Set[int], listed: Listed | None = None) -> None:
        """The policy may have changed, or an override ended, while nobody looked.

        ``wanted``: minors whose marks flows bear; users' classes are looked at in any case.
        """
        registry = self._registry
        owners = registry.minors.by_minor.values()
        looked_at = [o for o in owners if o.minor in wanted or registry.is_shaped(o)]
        registry.ensure(registry.classes.outdated(looked_at, listed))

    # -- static identities ------------------------------------------------------------------------

    def set_identities(self, identities: Identities) -> None:
        """Others from now on; a repair must follow, and ``adopt``, which puts them in force."""
        self._statics.identities = identities
        self._people.want(identities.people)

    def nobodys(self, speaker: int, within_s: float) -> int:
        """How many live flows to a source's own ports began within so long and are nobody's."""
        ports = self._voices[speaker].ports or self._nobodys_ports
        return self._flows.mirror.nobodys_since(self._steady_clock() - within_s, ports)

    @cached_property
    def _nobodys_ports(self) -> bytes:
        """By port whether no source has it for its own."""
        taken = (voice.ports for voice in self._voices if voice.ports is not None)
        return bytes(not any(of) for of in zip(bytes(1 << 16), *taken, strict=True))

    @property
    def joined_entries(self) -> list[str]:
        """Users of the policy who are a person's identity."""
        registry = self._registry
        return sorted(registry.names.people.keys() & registry.classes.policy.users.keys())[:_SHOWN]

    @property
    def joins(self) -> bool:
        """Whether the next `adopt` makes somebody somebody else (`core.people`)."""
        return self._people.is_pending

    def _give_statics(self) -> bool:
        """Minors, classes and the kernel's maps; returns whether open flows were moved."""
        statics = self._statics
        statics.give()
        if statics.identities.has_static:
            self._pool.look_again()
        self._fix()
        return self._write_statics()

    def _write_statics(self) -> bool:
        moved = self._statics.write(self._flows.ends)
        if moved:
            self._marking.quic.forget()
        return moved

    def _fix(self) -> None:
        """Whose flows are theirs whatever is said."""
        devices = self._registry.devices() if self._limits.is_wanted else ()
        mirror, partly = self._flows.mirror, self._statics.of_people()
        mirror.fixed = (self._statics.minors - partly).union((ENDED_MINOR,), devices)
        mirror.partly_fixed = partly
        mirror.static_minor = lambda flow: self._statics.is_whose(flow, self._flows.ends)

    def tend_statics(self) -> None:
        """Once a second: those whose classes have been made since.  Raises Suspended."""
        if self._statics.is_pending:
            with self._lock:
                self._refresh()
                if self._write_statics():
                    self._marking.carry_out(self._flows.compare(lossy=True))

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

    def _still_holds(self, email: bytes, client: bytes) -> bool:
        owner = self._registry.of_email(email)
        records = self._flows.mirror.find(client)
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
            self._limits.renew()
        self._lock.changed_hands = False

    # -- what the kernel says ---------------------------------------------------------------------

    def listen(self) -> None:
        """Flows have come or gone.  Raises Suspended."""
        heard = self._flows.drain()
        come = self._come()
        if heard or come or self._limits.has_work:
            with self._lock:
                self._refresh()
                self._marking.carry_out(heard)
                self._give_early(come)
                self._limits.settle()

    def _come(self) -> list[Early]:
        """Claims that came before their flows, which are here now."""
        judging, voices = self._judging, self._voices
        return judging.awaited.take(lambda early: judging.arrival(early, voices[early.speaker]))

    def _give_early(self, come: list[Early]) -> None:
        if not come:
            return
        before, round_ = self._vouchers.speaker, Round(self._steady_clock())
        self._marking.look_at([(early.claim, early.client) for early in come], 0)
        for early in come:
            self._listen_to(early.speaker)
            self._judging.judge(early.claim, early.client, round_, early=True)
        self._marking.finish(round_)
        self._listen_to(before)

    def saw_strangers(self, strangers: list[Stranger]) -> None:
        """Lines that bear strangers' text were read.  Raises Suspended."""
        if self._guard is not None and strangers:
            self.listen()  # their connections are known by now
            self._guard.saw(strangers)

    def doubted(self) -> tuple[list[int], dict[int, set[str]]]:
        """Minors of restricted classes, and which users' flows have left which since last asked."""
        registry = self._registry
        *_, fair_use = registry.left
        name = registry.names.of
        left = {minor: {name(key) for key in keys} for minor, keys in fair_use.items()}
        fair_use.clear()
        owners = registry.minors.by_minor.values()
        return [owner.minor for owner in owners if not owner.is_user], left

    # -- claims -----------------------------------------------------------------------------------

    @property
    def in_free_text(self) -> list[int]:
        """Numbers of sources where a name that no engine checked may reach into what comes next."""
        return [number for number, voice in enumerate(self._voices) if voice.is_in_free_text]

    def begin_in_free_text(self, speakers: Iterable[int]) -> None:
        """What `in_free_text` was when what is read first was not yet."""
        for number in speakers:
            self._voices[number].begin_within()

    def assign(
        self,
        claims: Sequence[Claim],
        window: tuple[float, float] | None = None,
        epoch_offset_s: float | None = None,
        speaker: int = 0,
    ) -> None:
        """Mark the flows of ``claims``.  Raises Suspended; kernel refusals are counted and told.

        All are of one source, the ``speaker``, by its number among the settings'.

        They were made within ``window`` of the steady clock (by default within the last second),
        and their stamps count with ``epoch_offset_s``, see `stamp.written`.
        """
        now = self._steady_clock()
        self._listen_to(speaker)
        self._judging.window = window or (now - 1.0, now)
        self._judging.epoch_offset_s = epoch_offset_s
        with self._lock:
            if self._lock.changed_hands:
                self._refresh()
            self._marking.carry_out(self._flows.drain())
            self._give_early(self._come())
            repeated: dict[bytes, Claim] = {}
            # Where names are not checked, a line may be of a flow that nobody knows.
            is_certain = not (self._judging.voice.free_text and self._flows.may_miss)
            words = self._known.words if is_certain else {}
            kinds, prefix = self._judging.voice.kinds, self._judging.voice.prefix
            if prefix:
                claims = [c._replace(email=prefix + c.email) if c.email else c for c in claims]
                kinds = (b"\0:",)  # what begins so is of no other kind
            new = claims
            if not words.keys().isdisjoint(map(_SOURCE, claims)):
                new = []
                for claim in claims:
                    # By number, because every line comes here: source, email, tainted, local.
                    source = claim[0]
                    word = words.get(source)
                    if (
                        word is not None
                        and word[EMAIL] == claim[2]
                        and not claim[3]
                        and claim[6] is None
                        and not claim[9]
                    ):
                        repeated[source] = claim
                    else:
                        new.append(claim)
            others = self._named(new, kinds)
            if repeated:
                others += self._marking.repeat(repeated)
            for start in range(0, len(others), _ROUND):
                self._give(others[start : start + _ROUND])

    @staticmethod
    def _named(claims: Sequence[Claim], kinds: tuple[bytes, ...]) -> list[Claim]:
        """Claims with names that nobody of another kind has."""
        return [
            claim
            if (name := claim[2]) is None or b":" not in name or not name.startswith(kinds)
            else claim._replace(email=qualified(name, kinds))
            for claim in claims
        ]

    def _give(self, claims: list[Claim]) -> None:
        """One round: each claim meets its flow, is judged, and the marks are set."""
        ends = list(zip(claims, client_ends(claims), strict=True))
        if self._flows.may_miss:
            self._look_up(ends)
        unseen = self._marking.sample(ends)
        round_ = Round(self._steady_clock())
        if not self._judging.voice.free_text:
            is_late = self._judging.is_late
            ends = self._plain_words.give(ends, round_.began_s, unseen, is_late)
            if unseen and ends and self._marking.look_at(ends, unseen):
                ends = self._plain_words.give(ends, round_.began_s, is_late=is_late)
        elif unseen:
            self._marking.look_at(ends, unseen)
        for claim, client in ends:
            self._judging.judge(claim, client, round_)
        self._marking.finish(round_)
        self._limits.settle()
        if self._early is not None and self._early.users.removed:
            self._write_early()  # the next connection from there may already be on its way

    def _look_up(self, ends: list[End]) -> None:
        """Ask for flows that the mirror may have missed, also their ends."""
        find, tag = self._flows.mirror.find, self._flows.tags.tag
        if self._flows.fileno() < 0:
            # Whose flow another user is said to have may have ended, and the tuple be used again.
            of_email = self._registry.of_email
            others: list[Held] = []
            for claim, client in ends:
                if client is not None and claim.email and not claim.tainted:
                    named = of_email(claim.email)
                    minor = named.minor if named is not None else 0
                    others += [(client, r) for r in find(client) if r & MINOR not in (0, minor)]
            self._marking.carry_out(self._flows.look_again(others))
        wanted = [(c, tag(claim.detour)) for claim, c in ends if c is not None and not find(c)]
        if wanted:
            self._flows.look_up(wanted)

    # -- how many flows one user may have ---------------------------------------------------------

    def _renew_limits(self) -> None:
        """The policy, orders or identities may say something else."""
        ports = self._statics.counted_ports()
        if ports != self._flows.static_ports:
            self._marking.carry_out(self._flows.hear_static(ports))
        self._limits.renew()
        self._limits.settle()

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
        return self._layout.mark(owner.minor)

    # -- once a second ----------------------------------------------------------------------------

    def tend_flows(self) -> None:
        """Once a second: what keeps the mirror true.  Raises Suspended."""
        self._marking.quic.tend()
        heard = self._flows.tend()
        if self._flows.may_miss:
            self._look_up([(early.claim, early.client) for early in self._judging.awaited])
        come = self._come()
        if heard or come or self._limits.is_on:
            with self._lock:
                self._refresh()
                self._marking.carry_out(heard)
                self._give_early(come)
                self._limits.tend()

    def compare_soon(self) -> None:
        """Fewer flows bear our marks than were given them."""
        self._flows.compare_soon()

    def tend_trees(self) -> None:
        """Once a minute, where there are several: who should be in another one.  Raises
        Suspended."""
        if not self._balancing.is_due:
            return
        self.read_counters()
        with self._lock:
            self._refresh()
            try:
                staying = self._flows.mirror.fixed | self._registry.classes.cuts.minors
            except KernelRefused as error:
                self._registry.refused(error)
                return
            if self._balancing.move_one(staying):
                self._known.keep(self._still_holds)
                if self._early is not None:
                    self._early.renew()
                self._renew_limits()

    @property
    def is_waiting(self) -> bool:
        """Whether time alone changes something: flows that are looked up, that wait for a word or
        have limits of their own, a repair, classes that could not be made or written."""
        return (
            self._limits.is_on
            or self._flows.may_miss
            or bool(self._judging.awaited)
            or self._statics.is_pending
            or self._registry.is_waiting
        )

    def keep_time(self) -> bool:
        """Once a second: take over what other processes ordered, end overrides in time; returns
        whether there was anything."""
        is_current = self._registry.is_current
        if not is_current:
            with self._lock:
                self._refresh()
        is_due = self._orders.is_due
        if is_due:
            with self._lock:
                self._refresh()
                self._orders.end_due()
                self._renew_limits()
        return is_due or not is_current

    def tell_users(self) -> None:
        """Once a second: tell of users who came since, when no claim waits for it."""
        came, self._registry.came = self._registry.came, []
        tell_limits(self._journal, events.USER_CAME, self._registry.classes, came)

    @property
    def returned(self) -> dict[str, str]:
        """Hashes of users who were seen again since hashing was switched off, with their emails."""
        return self._registry.returned

    def rename(self, names: Names) -> Names:
        """Give users who returned their emails back; returns how names are from now on.

        Raises Suspended, KernelRefused, StateError.
        """
        registry = self._registry
        with self._lock:
            self._refresh()
            names = keep_names(self._state, names, registry.returned)
            registry.returned = {}
            if self._early is not None:
                self._early.forget()
        self.adopt()
        return names

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
            registry.fit_all()
            self._orders.complain()
            registry.classes.recount(owners)
            registry.weigh()
            self._balancing.look_soon()
            changed = registry.classes.outdated(filter(registry.is_shaped, owners))
            registry.ensure(changed)
            self._renew_limits()
        tell_limits(self._journal, events.LIMITS_CHANGED, registry.classes, changed)
        return len(changed)

    def active(self) -> list[tuple[str, int]]:
        """(email, minor) of all users who have a class."""
        return self._registry.active()

    def counters(self, direction: int) -> MinorTable:
        """{minor: bytes sent} of all classes, of direction 0 (upload) or 1 (download).

        Whoever asks, accounts have it, too.  Raises KernelRefused, Suspended.
        """
        began_s = time.thread_time()
        with self._lock:
            self._refresh()
        # Not under the lock: the kill switch waits for it.
        ifindex = self._registry.classes.devices[direction]
        sent = self._tc.sent_bytes(ifindex, *self._layout)
        with self._lock:
            # What others have booked or taken away meanwhile, an older reading must not undo.
            if self._registry.is_current:
                self._books.book(direction, sent, self._steady_clock(), began_s)
        return sent

    def tend_accounts(self) -> None:
        """Once a second: have counters read that were not for long.  Raises Suspended."""
        now = self._steady_clock()
        direction = self._books.due(now)
        if direction is not None:
            try:
                self.counters(direction)
            except KernelRefused as error:
                self._books.put_off(direction, now)
                effect = "what users move is read later"
                self._journal.tell(events.KERNEL, error=str(error), effect=effect)

    def read_counters(self) -> None:
        """Book what has passed before the classes go that have counted it.  Raises Suspended."""
        try:
            for direction in (0, 1):
                self.counters(direction)
        except KernelRefused as error:
            effect = "what users move may be counted in part"
            self._journal.tell(events.KERNEL, error=str(error), effect=effect)

    def close_accounts(self) -> None:
        """Book what has passed until now: after a reboot no class would know it.

        Also when the kill switch was thrown.
        """
        devices = self._registry.classes.devices
        try:
            with self._lock:
                up, down = (self._tc.sent_bytes(ifindex, *self._layout) for ifindex in devices)
                self._state.accounts.book_all(
                    self._state.owners(), (up, down), self._clock(),
                    people=self._registry.names.people,
                )  # fmt: skip
        except (KernelRefused, StateError) as error:
            event = events.STATE if isinstance(error, StateError) else events.KERNEL
            effect = "what users moved is booked at the next start"
            self._journal.tell(event, error=str(error), effect=effect)

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
            self._renew_limits()

    @property
    def vouchers(self) -> Vouchers:
        """Who was named when; for `explain`, which reads it from a file."""
        return self._vouchers

    @property
    def state_version(self) -> int:
        """Changes once something that another process wrote into the state was taken over."""
        return self._registry.state_version

    @property
    def flows_born(self) -> int:
        """Flows that have begun since the start."""
        return self._flows.mirror.born

    def snapshot(self) -> dict[str, int | str]:
        """Counters for ``status``; cheap."""
        flows = self._flows
        counts: dict[str, int | str] = {
            **vars(self.counts),
            "new_owners": self._registry.new_owners,
            "flows_known_by": flows.way,
            "flows_known": flows.mirror.size,
            "flows_born": self.flows_born,
            "flows_claimed": flows.mirror.claimed,
            "flows_robbed": flows.mirror.robbed,
            "flows_lost_events": flows.losses,
            "flows_looked_up": flows.look_ups,
            "flows_not_looked_up": flows.skipped,
        }
        if self._statics.identities.has_static:
            counts["static_identities"] = len(self._statics.identities.keys)
            counts["static_in_force"] = self._statics.in_force
            counts["static_moved"] = self._statics.moved
        if people := self._registry.names.people:
            counts["people"] = len(self._registry.persons)
            counts["people_identities"] = len(people)
        if flows.mirror.changes is not None:
            counts.update(self._limits.counts)
        if self._guard is not None:
            counts["floods_paced"], counts["floods_held"] = self._guard.paced, self._guard.held
        if self._early is not None:
            counts["early_addresses"] = self._early.elements
            counts["early_expired"] = self._early.expired
        return counts
