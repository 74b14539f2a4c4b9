"""Ends flows for good: their sockets where they are on this host, and their packets."""

from __future__ import annotations

from ..core.claims.trust import FIXED
from ..core.flows.mirror import Held
from ..core.flows.record import owned
from ..core.htb import ENDED_MINOR
from ..cutting import Cuts
from ..kernel.packed.sockets import end_connections
from .flow_table import FlowTable
from .marking import Marking


class Ending:
    """An ended flow bears a mark of its own as long as the kernel's table has it."""

    def __init__(self, flows: FlowTable, marking: Marking, cuts: Cuts) -> None:
        self._flows, self._marking, self._cuts = flows, marking, cuts

    def end(self, flows: list[Held]) -> None:
        """End these.  Raises KernelRefused."""
        mirror = self._flows.mirror
        # First the sockets: what ends with them needs no mark.
        named = [(mirror.flow(client, record), client, record) for client, record in flows]
        ended = set(end_connections(flow for flow, _client, _record in named))
        rest = []
        for flow, client, record in named:
            if flow in ended:
                mirror.remove(client, record)
                self._marking.forget(client)
            else:
                rest.append((client, record, owned(record, ENDED_MINOR, FIXED)))
        if rest:
            self._cuts.end_marked()
            self._marking.give(rest)
