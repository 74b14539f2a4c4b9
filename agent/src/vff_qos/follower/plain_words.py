"""The usual first claim: a plain word of a known user on a flow that is nobody's.

`judge` says GIVE to each of these; a test holds it to that.  Thousands come at once when a node
restarts, so each costs no more than it must: nothing is looked up, packed or made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.claims.accesslog import Claim
from ..core.claims.trust import Vouchers
from ..core.flows.record import END, RANK_SHIFT, REMEMBERED, port
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
        failed: Callable[[bytes, int, int], None],
    ) -> None:
        """``failed`` is told (client's end, record, errno) of each mark that the kernel refused."""
        #: The source that is listened to.
        self.voice = voice
        self._registry, self._flows, self._known = registry, flows, known
        self._vouchers, self._conntrack, self._early = vouchers, conntrack, early
        self._counts, self._failed = counts, failed

    def give(self, ends: list[End], now_s: float, unseen: int = 0) -> list[End]:
        """Mark the flows of plain words; returns all other claims.

        Flows with one of the flags ``unseen`` may bear a mark already: they are left out.
        """
        others: list[End] = []
        skip = others.append
        flags, ports = self.voice.plain << RANK_SHIFT, self.voice.ports
        mirror, tag = self._flows.mirror, self._registry.tag
        plain = mirror.plain
        of_email, has_class = self._registry.of_email, self._registry.classes.has
        early, fits, around = self._early, self._flows.tags.fits, self._flows.around
        held: dict[bytes, int] = {}
        requests: list[bytes] = []
        words, learned = self._known.words, 0
        # Most lines are of the same inbound as the one before.
        known_end, known_detour = -1, None
        first = second = third = b""
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
            owner = of_email(email)
            if owner is None or owner.state is not ACTIVE or not has_class(owner.minor):
                skip(end)
                continue
            if record & END != known_end:
                if ports is not None and not ports[port(record)]:
                    skip(end)
                    continue
                known_end, known_detour = record & END, None
                first, second, third = around(known_end)
            if local is not None:
                if not _is_at(claim, record):
                    skip(end)
                    continue
            elif detour != known_detour:
                if not fits(detour, record):
                    skip(end)
                    continue
                known_detour = detour
            minor = owner.minor
            request = b"".join((first, client[:-2], second, client[-2:], third, tag(minor)))
            record |= minor | flags
            if local is None:
                words[source] = email, request, client
                learned += 1
                record |= REMEMBERED
            held[client] = record
            requests.append(request)
            if early is not None:
                early.users.saw(client[:-2], owner.key, now_s)
        if requests:
            mirror.claim(held)
            self._known.added(learned)
            self._vouchers.saw(held.items(), now_s)
            errors = self._conntrack.set_marks(requests)
            self._counts.marked += len(requests) - len(errors)
            flows = list(held.items()) if errors else []
            for index, code in errors.items():
                self._failed(*flows[index], code)
            self._registry.end_cut(mirror.flow, held.items())
        return others


def _is_at(claim: Claim, record: int) -> bool:
    """Whether the flow goes where the claim says."""
    local = claim.local
    return local is not None and local.port == port(record)
