"""What was decided goes into the kernel: marks that were given, lost ones, those handed on.

The mirror and the known words are brought to what the kernel has then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from ..core.claims.accesslog import Claim, spellings_of
from ..core.claims.trust import DOUBTED, Vouchers
from ..core.flows.mirror import Heard, Held
from ..core.flows.record import (
    FOREIGN,
    MINOR,
    PROVISIONAL,
    REMEMBERED,
    RESTRICTED,
    UDP,
    owned,
    unowned,
)
from ..core.owners import Owner
from ..core.settings import Settings
from ..errors import KernelRefused
from ..kernel.packed.conntrack import Conntrack
from .flow_table import FlowTable
from .known import CLIENT, REQUEST, KnownWords
from .plain_words import End
from .quic_ids import QuicFollowing
from .registry import Registry
from .round import Counts, Round

#: How many new flows of a round are looked at for marks of other software; once one was seen, all.
_LOOKED_AT, _CAREFUL_S = 16, 3_600.0


class Marking:
    """Sets marks and remembers what was set."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        flows: FlowTable,
        known: KnownWords,
        vouchers: Vouchers,
        conntrack: Conntrack,
        counts: Counts,
        shared: Callable[[bytes], Owner],
        clock: Callable[[], float],
    ) -> None:
        """``shared`` gives the owner of the restricted class of a client's address; ``clock``
        never goes back."""
        self._settings, self._registry, self._flows = settings, registry, flows
        self._known, self._vouchers, self._conntrack = known, vouchers, conntrack
        self._counts, self._shared, self._clock = counts, shared, clock
        # Marks that nft has set in advance are told of by no event where it does so late.
        self._is_early = settings.early_shaping
        # The same of UDP flows that the kernel follows when their second packet comes.
        self._in_advance = UDP if settings.follow_quic else 0
        #: What the kernel has learned of connections that move.
        self.quic = QuicFollowing(settings.follow_quic, registry.refused)
        self._careful_until = 0.0

    def carry_out(self, heard: Heard) -> None:
        """Set marks that are missing, hand on those of flows that continue others."""
        for client in heard.forgotten:
            self.forget(client)
        if heard.foreign:
            self._careful_until = self._clock() + _CAREFUL_S
        mirror, counts = self._flows.mirror, self._counts
        wanted: list[Held] = []
        for held in (*heard.restore, *heard.handed_on):
            if not mirror.still(*held):
                continue  # it has ended since, and the tuple may be another's
            owner = self._registry.owner(held[1] & MINOR)
            if owner is not None and self._registry.is_shaped(owner):
                wanted.append(held)
            else:
                mirror.put(held[0], unowned(held[1]))
        self._check_followed(heard.followed)
        counts.restored += len(heard.restore)
        counts.handed_on += len(heard.handed_on)
        counts.ambiguous_udp += len(heard.ambiguous)
        if self._settings.unknown_udp == "restrict":
            for client, record in heard.ambiguous:
                owner = self._shared(client)
                restricted = owned(record, owner.minor, DOUBTED, RESTRICTED)
                mirror.put(client, restricted)
                wanted.append((client, restricted))
            self._registry.commit()
        if wanted:
            errors = self._conntrack.set_marks(
                [self._flows.request(c, r, mirror.mark(r)) for c, r in wanted]
            )
            for index, code in errors.items():
                self.failed(*wanted[index], code)

    def _check_followed(self, followed: list[Held]) -> None:
        """Whose class was taken away meanwhile has no flow."""
        mirror, registry = self._flows.mirror, self._registry
        self._counts.followed += len(followed)
        wrong = []
        for client, record in followed:
            owner = registry.owner(record & MINOR)
            if mirror.still(client, record) and (owner is None or not registry.is_shaped(owner)):
                wrong.append((client, unowned(record)))
                mirror.put(*wrong[-1])
        if not wrong:
            return
        errors = self._conntrack.set_marks([self._flows.request(c, r, 0) for c, r in wrong])
        for index, code in errors.items():
            self.failed(*wrong[index], code)
        self.quic.forget()

    def failed(self, client: bytes, record: int, code: int) -> None:
        self._flows.mirror.remove(client, record)
        self.forget(client)
        if code == errno.ENOENT:
            self._counts.no_flow += 1
            return
        name = self._flows.mirror.flow(client, record)
        self._registry.refused(KernelRefused(code, f"setting the mark of {name}"))

    def forget(self, client: bytes) -> None:
        """No repetition of words on flows from this end is known any more."""
        self._known.forget((client, *spellings_of(client)))

    def repeat(self, repeated: dict[bytes, Claim]) -> list[Claim]:
        """Set marks of known words again, {source: claim}; returns claims whose flow is gone."""
        known = self._known.words
        requests = [known[source][REQUEST] for source in repeated]
        unknown: list[Claim] = []
        if not all(requests):
            unknown = self._make_requests(repeated)
            requests = [known[source][REQUEST] for source in repeated]
        errors = self._conntrack.set_marks(requests)
        self._counts.marked += len(requests) - len(errors)
        if not errors:
            return unknown
        claims = list(repeated.values())
        gone = [(known[claims[index][0]][CLIENT], code) for index, code in errors.items()]
        for client, code in gone:
            for record in self._flows.mirror.find(client):
                self._flows.mirror.remove(client, record)
            self.forget(client)
            if code != errno.ENOENT:
                what = f"setting the mark of {spellings_of(client)[0].decode()}"
                self._registry.refused(KernelRefused(code, what))
        return unknown + [claims[index] for index in errors]

    def _make_requests(self, repeated: dict[bytes, Claim]) -> list[Claim]:
        """Those that set the marks of words which are repeated for the first time; takes away and
        returns claims that mean no flow of theirs alone any more."""
        known, mirror = self._known.words, self._flows.mirror
        unknown = []
        for source in list(repeated):
            email, request, client = known[source]
            if request:
                continue
            records = mirror.find(client)
            mark = mirror.mark(records[0]) if len(records) == 1 else 0
            if mark:
                known[source] = email, self._flows.request(client, records[0], mark), client
            else:
                del known[source]
                unknown.append(repeated.pop(source))
        return unknown

    def sample(self, ends: list[End]) -> int:
        """Look at some of a burst's flows, or at all if marks have been seen that are not ours.

        To look at all would cost a fifth of the rest.  Returns flags: a flow that has one of them
        and has not been looked at may bear a mark in advance.
        """
        if not self._is_careful:
            self._look_at(ends[:: len(ends) // _LOOKED_AT + 1], 0)
            if not self._is_careful:
                return self._in_advance
        self._look_at(ends, 0)
        return 0

    def look_at(self, ends: list[End], flags: int) -> bool:
        """Look at flows that are nobody's and have one of ``flags``, if there are flags; whether
        there are any."""
        found = self._look_at(ends, flags)
        if found and flags and self._is_careful:
            self._look_at(ends, 0)  # the others as well, once one has borne another's mark
        return found

    @property
    def _is_careful(self) -> bool:
        return self._is_early or self._clock() < self._careful_until

    def _look_at(self, ends: list[End], flags: int) -> bool:
        """See which flows that are nobody's (and have one of ``flags``, if there are flags) bear a
        mark of other software, or one in advance; whether there were such flows."""
        mirror = self._flows.mirror
        held = {
            (client, record): self._flows.request(client, record, 0)
            for _claim, client in ends
            if client is not None
            for record in mirror.find(client)
            if not record & (MINOR | FOREIGN) and (not flags or record & flags)
        }
        if not held:
            return False
        marks = self._conntrack.get_marks(list(held.values()))
        for (client, record), mark in zip(held, marks, strict=True):
            if mark and mirror.correct(client, record, mark):
                self._careful_until = self._clock() + _CAREFUL_S
        return True

    def give(self, given: Iterable[tuple[bytes, int, int]]) -> None:
        """Set the marks of flows: the client's end, the record as it is and as it shall be."""
        flows, mirror = list(given), self._flows.mirror
        errors = self._conntrack.set_marks(
            [self._flows.request(c, after, mirror.mark(after)) for c, _before, after in flows]
        )
        if any(_had_another(before, after) for _client, before, after in flows):
            self.quic.forget()
        for index, (client, before, after) in enumerate(flows):
            if index in errors:
                self.failed(client, before, errors[index])
                continue
            if before & REMEMBERED:
                self.forget(client)
            mirror.put(client, after)

    def finish(self, round_: Round) -> None:
        """Save, make classes, set marks, remember."""
        registry, mirror = self._registry, self._flows.mirror
        registry.commit()
        self._vouchers.passed_on(registry.displaced, round_.began_s)
        given = list(round_.given.values())
        requests = [self._flows.request(g.client, g.after, mirror.mark(g.after)) for g in given]
        errors = self._conntrack.set_marks(requests) if requests else {}
        self._counts.marked += sum(g.before & MINOR != g.after & MINOR for g in given)
        if any(_had_another(g.before, g.after) for g in given):
            self.quic.forget()
        for index, (client, before, after, claim) in enumerate(given):
            if index in errors:
                self.failed(client, after, errors[index])
            elif claim is not None:
                remembered = 0
                if claim.local is None:
                    self._known.words[claim.source] = claim.email or b"", b"", client
                    self._known.added(1)
                    remembered = REMEMBERED
                mirror.put(client, after | remembered)
            else:
                if before & REMEMBERED:
                    self.forget(client)
                mirror.put(client, after)
        registry.end_cut(mirror.flow, [(g.client, g.after) for g in given])


def _had_another(before: int, after: int) -> bool:
    """Whether packets of a flow may have taught the kernel a mark that it has not any more."""
    minor = before & UDP and before & MINOR
    return bool(minor) and not before & PROVISIONAL and minor != after & MINOR
