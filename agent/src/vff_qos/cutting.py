"""Users who are cut off: their connections end at once, and new ones as soon as they are known.

nft answers packets of their marks with a reset and drops their UDP, both ways
(core/plan/nft_table.py); what has its socket on this host ends without waiting for a packet.  Marks
are in the set before sockets end: from then on nothing but resets leaves, and these by no class, so
that they wait for no queue.
"""

from __future__ import annotations

import errno
from collections.abc import Set

from .core.claims.trust import address_key
from .core.flows.ends import unmapped
from .core.htb import ENDED_MINOR
from .core.layout import Layout
from .errors import KernelRefused
from .kernel.packed.conntrack import Conntrack, decode_tuple
from .kernel.packed.nft_elements import CutSet
from .kernel.packed.sockets import end_connections


class Cuts:
    """Whose marks are in the set of those who are cut off.  Opens sockets only for a change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._minors: frozenset[int] | None = None
        self._ends_marked = False

    @property
    def minors(self) -> frozenset[int]:
        """Minors of users who are cut off, as the kernel has it.  Raises KernelRefused."""
        if self._minors is None:
            elements = CutSet()
            try:
                marks = elements.marks()
            except KernelRefused as error:
                if error.code != errno.ENOENT:  # no table: nobody is
                    raise
                marks = set()
            finally:
                elements.close()
            minors = {mark & 0xFFFF for mark in marks if self._is_of_user(mark)}
            self._ends_marked = ENDED_MINOR in minors
            self._minors = frozenset(minors - {ENDED_MINOR})
        return self._minors

    def _is_of_user(self, mark: int) -> bool:
        return mark == self._layout.mark(mark & 0xFFFF)

    def forget(self) -> None:
        """The kernel's set may be another by now."""
        self._minors = None

    def end_marked(self) -> None:
        """Have the table end what bears the mark of ended connections.  Raises KernelRefused."""
        self.minors  # noqa: B018 - what the kernel has is read
        if not self._ends_marked:
            self._put([self._layout.mark(ENDED_MINOR)], [])
            self._ends_marked = True

    def change(self, cut: set[int], others: set[int]) -> frozenset[int]:
        """Cut off the users of ``cut``, and nobody of ``others``; returns who was not before.

        What waits in their queues still leaves: the caller has these emptied.  Raises
        KernelRefused.
        """
        known = self.minors
        fresh, gone = frozenset(cut - known), others & known
        if fresh or gone:
            mark = self._layout.mark
            self._put([mark(m) for m in fresh], [mark(m) for m in gone])
            self._minors = known - gone | fresh
        return fresh

    def _put(self, marks: list[int], gone: list[int]) -> None:
        elements = CutSet()
        try:
            elements.change(marks, gone)
        except KernelRefused:
            self.forget()
            raise
        finally:
            elements.close()

    def end_from(self, minor: int, place: bytes) -> int:
        """End a user's connections from one address, for good; returns how many there were.

        Raises KernelRefused.
        """
        conntrack, layout = Conntrack(), self._layout
        try:
            found = [
                (entry, flow)
                for entry in conntrack.dump_of(layout.tag, layout.mask, {layout.mark(minor)})
                if (flow := decode_tuple(entry.tuple_raw)) is not None
                and address_key(unmapped(flow.src)) == place
            ]
            self.end_marked()
            ended = layout.mark(ENDED_MINOR)
            conntrack.set_entries([(entry, ended) for entry, _flow in found])
            end_connections(flow for _entry, flow in found)
        finally:
            conntrack.close()
        return len(found)

    def end(self, minors: Set[int]) -> None:
        """End all live TCP connections of these users whose sockets are on this host.

        Raises KernelRefused.
        """
        if not minors:
            return
        marks = {self._layout.mark(minor) for minor in minors}
        conntrack = Conntrack()
        try:
            entries = conntrack.dump_of(self._layout.tag, self._layout.mask, marks)
        finally:
            conntrack.close()
        flows = (decode_tuple(entry.tuple_raw) for entry in entries)
        end_connections(flow for flow in flows if flow is not None)
