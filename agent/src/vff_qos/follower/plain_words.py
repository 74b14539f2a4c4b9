"""The usual first claim: a plain word of a known user on a flow that is nobody's.

`judge` says GIVE to each of these; a test holds it to that.  Thousands come at once when a node
restarts, so each costs no more than it must: nothing is looked up, packed or made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.claims.accesslog import Claim
from ..core.claims.trust import Vouchers
from ..core.flows.meeting import Written
from ..core.flows.record import (
    END,
    RANK_SHIFT,
    REMEMBERED,
    REUSED,
    birth_ms,
    goes_to,
    port,
)
from ..core.owners import ACTIVE
from ..kernel.packed.conntrack import Conntrack
from .flow_table import FlowTable
from .known import KnownWords
from .registry import Registry
from .round import Counts

if TYPE_CHECKING:
    from .early import EarlyShaping
    from .voice import Voice

#: A claim and its client's packed end; None if it names no flow.
End = tuple[Claim, bytes | None]


class PlainWords:
    """Gives away what needs no judge."""

    def __init__(
        self,
        voice: Voice,
        registry: Registry,
        flows: FlowTable,
        known: KnownWords,
        vouchers: Vouchers,
        conntrack: Conntrack,
        early: EarlyShaping | None,
        counts: Counts,
        when: Callable[[Claim], Written],
        failed: Callable[[bytes, int, int], None],
    ) -> None:
        """``when`` says when a claim was made; ``failed`` is told (client's end, record, errno) of
        each mark that the kernel refused."""
        #: The source that is listened to.
        self.voice = voice
        self._registry, self._flows, self._known = registry, flows, known
        self._vouchers, self._conntrack, self._early = vouchers, conntrack, early
        self._counts, self._when, self._failed = counts, when, failed

    def give(
        self, ends: list[End], now_s: float, unseen: int = 0, is_late: bool = False
    ) -> list[End]:
        """Mark the flows of plain words; returns all other claims.

        Flows with one of the flags ``unseen`` may bear a mark already: they are left out.
        ``is_late``: any flow may be younger than its claim, see `Judging.is_late`.
        """
        others: list[End] = []
        skip = others.append
        flags, ports = self.voice.plain << RANK_SHIFT, self.voice.ports
        mirror, registry = self._flows.mirror, self._registry
        plain, of_email, by_email = mirror.plain, registry.of_email, registry.by_email
        made = registry.classes.made
        early, fits, direct = self._early, self._flows.tags.fits, self._flows.tags.direct
        held: dict[bytes, int] = {}
        # The clients and minors of the flows to each of our ends.
        groups: dict[int, tuple[list[bytes], list[int]]] = {}
        clients: list[bytes] = []
        minors: list[int] = []
        words, learned = self._known.words, 0
        # Most lines are of the same inbound as the one before.
        known_end, known_detour = -1, None
        for end in ends:
            claim, client = end
            source, detour, email, tainted, _time, _position, local, _author, _end, proto = claim
            if client is None or tainted or not email or proto or client in held:
                skip(end)
                continue
            record = plain(client, unseen)
            if not record:
                skip(end)
                continue
            if is_late or record & REUSED:
                made_before = self._is_older(claim, client, record)
                if made_before is None or (ports is not None and not ports[port(record)]):
                    skip(end)
                    continue
                if made_before:
                    self._counts.stale += 1
                    continue
            if by_email is None or not email.isascii():
                owner = of_email(email)
            else:
                owner = by_email.get(email.decode())
            if owner is None or owner.state is not ACTIVE or not made[owner.minor]:
                skip(end)
                continue
            if record & END != known_end:
                if ports is not None and not ports[port(record)]:
                    skip(end)
                    continue
                known_end, known_detour = record & END, None
                clients, minors = groups.setdefault(known_end, ([], []))
            if local is not None:
                if not goes_to(record, local.port, mirror.address_number(local.address)):
                    skip(end)
                    continue
                direct.add(record & END)
            elif detour != known_detour:
                if not fits(detour, record):
                    skip(end)
                    continue
                known_detour = detour
            minor = owner.minor
            record |= minor | flags
            if local is None:
                words[source] = email, b"", client
                learned += 1
                record |= REMEMBERED
            held[client] = record
            clients.append(client)
            minors.append(minor)
            if early is not None:
                early.users.saw(client[:-2], owner.key, now_s)
        if held:
            mirror.claim(held)
            self._known.added(learned)
            self._vouchers.saw(held.items(), now_s)
            for ours, (clients, minors) in groups.items():
                self._set_marks(ours, clients, minors, held)
            registry.end_cut(mirror.flow, held.items())
        return others

    def _is_older(self, claim: Claim, client: bytes, record: int) -> bool | None:
        """Whether a claim was made before the flow of a tuple that was used again began, so that
        it meant the flow before; None: that is not certain.

        After a restart it mostly is.  Where the flow before ended just now, the claim may be of
        that one's inbound.
        """
        made = self._when(claim)
        if birth_ms(record) <= made.since_ms:
            return None if self._flows.mirror.last_port(client) else False
        return True if self._flows.mirror.earliest_ms(record) > made.until_ms else None

    def _set_marks(
        self, ours: int, clients: list[bytes], minors: list[int], held: dict[bytes, int]
    ) -> None:
        major, trees = self._registry.layout
        # As `Layout.mark`, without the cost of calls.
        marks = [major + minor % trees << 16 | minor for minor in minors]
        errors = self._conntrack.give_marks(self._flows.around(ours), clients, marks)
        self._counts.marked += len(clients) - len(errors)
        for index, code in errors.items():
            self._failed(clients[index], held[clients[index]], code)
