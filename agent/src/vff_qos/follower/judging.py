"""The judge's use: a claim meets its flow, gets a rank, and what follows is put into the round.

The rules themselves are `core.claims.trust.judge`; nothing here touches the kernel.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ..core import events
from ..core.claims.accesslog import Claim, taint_authors
from ..core.claims.stamp import written
from ..core.claims.trust import (
    DOUBTED,
    FIXED,
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
from ..core.flows.meeting import Fit, Local, Written, at_local, meet
from ..core.flows.mirror import GRAVE_S, SEVERAL
from ..core.flows.record import (
    END,
    FOREIGN,
    MINOR,
    PROVISIONAL,
    RESTRICTED,
    holder,
    owned,
    port,
    rank,
    unowned,
)
from ..core.owners import Owner
from ..core.settings import Settings
from ..errors import Exhausted
from ..journal import Journal
from .awaited import Awaited, Early, of_protocol
from .early import EarlyShaping
from .flow_table import FlowTable
from .registry import Registry
from .restriction import Restriction
from .round import Counts, Round
from .voice import Voice

_NOT_FOUND = 8
#: For so long at least the kernel's table shows a connection that has ended
#: (nf_conntrack_tcp_timeout_close).
_LINGER_S = 10.0


class Judging:
    """Gives each claim's flow to whom it belongs, in the mirror's terms."""

    def __init__(
        self,
        settings: Settings,
        voice: Voice,
        registry: Registry,
        flows: FlowTable,
        vouchers: Vouchers,
        early: EarlyShaping | None,
        counts: Counts,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` never goes back."""
        self._settings, self._registry, self._flows = settings, registry, flows
        self._vouchers, self._early = vouchers, early
        self._counts, self._journal, self._clock = counts, journal, clock
        self._restriction = Restriction(registry)
        #: The source that is listened to.
        self.voice = voice
        self.awaited = Awaited(clock, self._lost)
        #: Ends of clients whose claims named no flow, the latest last.
        self.not_found: deque[bytes] = deque(maxlen=_NOT_FOUND)
        #: When the claims of the round were made, see `stamp.written`.
        self.window: tuple[float, float] = (0.0, 0.0)
        self.epoch_offset_s: float | None = None

    def shared(self, client: bytes) -> Owner:
        """The owner of the restricted class, with the default's limits, of a client's address."""
        return self._restriction.shared(client[:-2])

    def judge(self, claim: Claim, client: bytes | None, round_: Round, early: bool = False) -> None:
        """One claim, by the rules of trust; ``early``: it came before its flow."""
        counts, mirror = self._counts, self._flows.mirror
        if client is None:
            counts.no_source += claim.email != b""
            if self.voice.free_text:
                # Nobody knows of which inbound it is.
                self._taint_after(claim, (0,))
            return
        local, records = self._local(claim), self._may_mean(claim, client, self.voice)
        tag = self._flows.tags.tag(claim.detour)
        if not records:
            ended = mirror.last_port(client)
            is_over = ended and (local is None or ended in (local.port, SEVERAL))
            if claim.protocol and not early and not is_over:
                counts.awaited += 1
                self.awaited.add(Early(claim, client, self._vouchers.speaker))
                return
            self._lost(client)
            if self.voice.free_text:
                self._taint_after(claim, self._ports(client, ()))
            return
        # What this round has said of them already.
        records = tuple(
            given.after if (given := round_.given.get((client, r & END))) else r for r in records
        )
        # The tag that picks the flow may be a part of the name: each such flow of this end may be
        # the one that the line is of.
        said_freely = [record for record in records if self._is_free_text(port(record))]
        is_tainted = bool(claim.tainted or said_freely)
        is_tainted |= self.voice.is_after_free_text(claim.position)
        if self.voice.free_text:
            # Also where flows may be missing: one of them may be such a one.
            is_tainted |= self._flows.may_miss
            self._taint_after(claim, self._ports(client, records))
        for record in said_freely:
            self._restrict_free_text(client, record, claim.tainted, round_)
        named = self._registry.of_email(claim.email) if claim.email else None
        minor = named.minor if named else 0
        if claim.protocol and local is not None and not early:
            _records, fit = at_local(records, minor, local, self._flows.tags)
            if fit is Fit.ELSEWHERE:
                self.awaited.add(Early(claim, client, self._vouchers.speaker), is_guessed=True)
        meeting = meet(
            records, minor, tag, local, self._flows.tags, lambda: self.when(claim, early),
            mirror.earliest_ms, self.is_late and not early, mirror.last_port(client) != 0,
        )  # fmt: skip
        if meeting is None:
            counts.stale += 1
            return
        record = meeting.record
        if self._is_free_text(port(record)):
            return
        if claim.email == b"":
            # A line without a user claims nothing where names are checked.
            if record & PROVISIONAL:
                if is_tainted:
                    # Or whoever can have text written could lift a limit, their own included.
                    counts.ignored_tainted += 1
                    return
                self._bar(client)
                counts.early_corrected += 1
                round_.give(client, record, unowned(record), None)
            return
        # What was said in advance may have meant a flow that never came.
        word_rank = self._rank(claim, client, named, meeting.certain and not early, is_tainted)
        claimed = None if claim.email is None else minor
        verdict = judge(record, claimed, word_rank)
        if verdict is Verdict.FOREIGN:
            self._tell_foreign(client, record, named)
        elif verdict is Verdict.KEEP:
            counts.kept += 1
            if claimed != record & MINOR:
                counts.ignored_tainted += bool(claim.tainted)
            elif claim.email:
                # After a restart nothing else is there to learn from for a while.
                self._learn(claim, tag, client, records, word_rank)
                owner = self._registry.own(named.key if named else "")
                if word_rank >= PLAIN:
                    self._witness(client, owner)
                    if len(records) == 1 and not claim.protocol:
                        round_.give(client, record, record, claim)
        elif verdict is Verdict.GIVE:
            assert claim.email
            try:
                owner = self._registry.own_email(claim.email)
            except Exhausted as error:
                self._share(claim, client, record, error, round_)
                return
            # Before a word vouches for the new owner.
            self._vouchers.passed_on(self._registry.displaced, round_.began_s)
            self._count_early(record, owner.minor)
            after = owned(record, owner.minor, word_rank)
            if record & RESTRICTED:
                self._registry.freed(record & MINOR, owner)
            # By its text a word of one protocol would be taken for one of the other.
            sole = len(records) == 1 and not claim.protocol
            remembered = claim if word_rank >= PLAIN and sole else None
            if word_rank >= PLAIN:
                self._witness(client, owner)
            self._learn(claim, tag, client, records, word_rank)
            round_.give(client, record, after, remembered)
        else:
            self._restrict(claim, client, record, verdict, word_rank, round_)

    def arrival(self, early: Early, voice: Voice) -> Fit | None:
        """How the flow of a claim in advance goes where that says; None if there is none yet.

        ``voice`` is that of its source.
        """
        claim = early.claim
        named = self._registry.of_email(claim.email) if claim.email else None
        found = self._may_mean(claim, early.client, voice)
        records, fit = at_local(found, named.minor if named else 0, self._local(claim), voice.tags)
        return fit if records else None

    def _may_mean(self, claim: Claim, client: bytes, voice: Voice) -> Sequence[int]:
        """Flows of a client's end, of the claim's protocol, to ports that its source speaks of."""
        records = of_protocol(self._flows.mirror.find(client), claim.protocol)
        if (ports := voice.ports) is None:
            return records
        return tuple(record for record in records if ports[port(record)])

    def _local(self, claim: Claim) -> Local | None:
        end = claim.local
        if end is None:
            return None
        return Local(end.port, self._flows.mirror.address_number(end.address))

    def _lost(self, client: bytes) -> None:
        """A claim means a flow that nobody knows."""
        self._counts.no_flow += 1
        self.not_found.append(client)

    def _learn(
        self, claim: Claim, tag: bytes, client: bytes, records: Sequence[int], word_rank: int
    ) -> None:
        """Where the inbound of a tag listens, from a word that can have meant one flow only."""
        if claim.protocol:
            return  # such a claim has no tag
        if word_rank >= WEAK and len(records) == 1 and not self._flows.mirror.last_port(client):
            self._flows.tags.learn(tag, records[0])

    def _rank(
        self, claim: Claim, client: bytes, named: Owner | None, certain: bool, is_tainted: bool
    ) -> int:
        if not is_tainted:
            return self.voice.plain if certain else WEAK
        if named is None:
            return DOUBTED
        if not self._vouchers.vouch(named.minor, client[:-2], self._clock()):
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

    def when(self, claim: Claim, early: bool = False) -> Written:
        """When a claim was made; one in advance is of whatever comes."""
        if early:
            return self._flows.written(self._clock(), self._clock())
        return self._flows.written(*written(claim.time, *self.window, self.epoch_offset_s))

    @property
    def is_late(self) -> bool:
        """Whether the round's claims may be older than what is known of flows that have ended: they
        waited while nobody read them, or flows were not followed then.

        Of a log that was never read before nobody knows for how long: else no first word would be
        certain after an installation.
        """
        since_s, until_s = self.window
        if since_s == -math.inf:
            return False
        return since_s < self._flows.since_s - _LINGER_S or until_s - since_s > GRAVE_S

    def _witness(self, client: bytes, owner: Owner) -> None:
        """A plain word stands: it vouches for its user at this address."""
        self._vouchers.saw([(client, owner.minor)], self._clock())
        if self._early is not None:
            self._early.users.saw(client[:-2], owner.key, self._clock())

    def _restrict(
        self,
        claim: Claim,
        client: bytes,
        record: int,
        verdict: Verdict,
        word_rank: int,
        round_: Round,
    ) -> None:
        """Into a class that the flows in doubt of one address share."""
        conflict = verdict is Verdict.CONFLICT
        inside = not conflict and self._is_inside(claim, client)
        owner = self._restriction.of(client[:-2], record, claim.email, inside)
        after = owned(record, owner.minor, word_rank if conflict else rank(record), RESTRICTED)
        if not holder(record):
            after = owned(record, owner.minor, DOUBTED, RESTRICTED)
        self._count_early(record, owner.minor)
        if conflict:
            self._counts.conflicts += 1
            self._bar(client)
        else:
            self._counts.restricted += 1
        if after == record:
            return
        round_.give(client, record, after, None)
        flow = self._flows.mirror.flow(client, record)
        event = events.CONFLICT if conflict else events.DISTRUST
        self._journal.tell(event, flow=str(flow), email=self._concerned(claim, record))

    def _concerned(self, claim: Claim, record: int) -> tuple[str, ...]:
        """Who is said to have a flow and who has it, as far as they are users of this node.

        Other names may be anybody's text.
        """
        named = self._registry.of_email(claim.email) if claim.email else None
        has = self._registry.owner(holder(record))
        owners = [owner for owner in (named, has) if owner is not None and owner.is_user]
        return tuple(dict.fromkeys(owner.key for owner in owners))

    def _restrict_free_text(self, client: bytes, record: int, tainted: bool, round_: Round) -> None:
        """What is said in an inbound that checks no names counts for nobody."""
        if record & FOREIGN:
            self._tell_foreign(client, record)
            return
        if rank(record) == FIXED:
            return
        owner = self._restriction.lowest(client[:-2])
        after = owned(record, owner.minor, TOLD, RESTRICTED)
        self._count_early(record, owner.minor)
        self._counts.restricted += 1
        if after != record:
            round_.give(client, record, after, None)

    # -- names that were not checked --------------------------------------------------------------

    def _is_free_text(self, our_port: int) -> bool:
        return self.voice.free_text and any(
            low <= our_port <= high for low, high in self._settings.free_text_ports
        )

    def _ports(self, client: bytes, records: Sequence[int]) -> list[int]:
        """Our ports that a line of a client's end may be of; 0: one that nobody knows."""
        ended = self._flows.mirror.last_port(client)
        known = [*map(port, records), *([ended] if ended else [])]
        # Of a flow that has ended unseen, or so long ago that another one may have its name.
        is_any = self._flows.may_miss or self.is_late or ended == SEVERAL or not known
        return [*known, 0] if is_any else known

    def _taint_after(self, claim: Claim, our_ports: Iterable[int]) -> None:
        """What follows a line of such an inbound (0: nobody knows) may be a stranger's."""
        if any(not our_port or self._is_free_text(our_port) for our_port in our_ports):
            self.voice.taint_after(claim.position)

    # -- when something is short ------------------------------------------------------------------

    def _share(
        self, claim: Claim, client: bytes, record: int, error: Exhausted, round_: Round
    ) -> None:
        """All minors are taken: newcomers share one class, with the default's limits."""
        self._counts.exhausted += 1
        assert claim.email
        name = self._registry.name_of(claim.email)
        self._journal.tell(events.EXHAUSTED, error=str(error), email=name)
        after = owned(record, self._registry.own_overflow().minor, DOUBTED, RESTRICTED)
        if after != record:
            round_.give(client, record, after, None)

    # -- early shaping ----------------------------------------------------------------------------

    def _bar(self, client: bytes) -> None:
        """More than one user comes from an address."""
        if self._early is not None:
            self._early.users.bar(client[:-2], self._clock())

    def _count_early(self, record: int, minor: int) -> None:
        """A word has come for a flow that was given away in advance."""
        if record & PROVISIONAL:
            self._counts.early_confirmed += record & MINOR == minor
            self._counts.early_corrected += record & MINOR != minor

    def _tell_foreign(self, client: bytes, record: int, named: Owner | None = None) -> None:
        self._counts.foreign_mark += 1
        flow = self._flows.mirror.flow(client, record)
        email = named.key if named is not None else ""
        self._journal.tell(events.FOREIGN, flow=str(flow), email=email)
