"""Words that came before their flows: who is told in advance waits some seconds for the packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..core.claims.accesslog import UDP as UDP_PROTO
from ..core.claims.accesslog import Claim, Endpoint
from ..core.flows.record import ADDRESS_SHIFT, MAX_ADDRESSES, UDP, port

#: Whoever tells in advance knows of a client that is about to connect.
WAIT_S = 10.0
#: Whoever may post could post without end; the oldest go first.
MAX_WORDS = 1_024


class Early(NamedTuple):
    """A claim in advance, its client's packed end, and the number of the source that said it."""

    claim: Claim
    client: bytes
    speaker: int


class Awaited:
    """At most one word for each flow, as far as the words tell flows apart: the latest."""

    def __init__(self, clock: Callable[[], float], lost: Callable[[bytes], None]) -> None:
        """``clock`` never goes back; ``lost`` is told of each client whose flow never came."""
        self._clock, self._lost = clock, lost
        self._words: dict[tuple[bytes, int, Endpoint | None], tuple[float, Early]] = {}

    def __bool__(self) -> bool:
        return bool(self._words)

    def __iter__(self) -> Iterator[Early]:
        return iter([early for _until_s, early in self._words.values()])

    def add(self, early: Early) -> None:
        """No flow is there yet that this claim means."""
        key = early.client, early.claim.protocol, early.claim.local
        self._words.pop(key, None)
        if len(self._words) >= MAX_WORDS:
            oldest = next(iter(self._words))
            del self._words[oldest]
            self._lost(oldest[0])
        self._words[key] = self._clock() + WAIT_S, early

    def take(self, has_come: Callable[[Early], bool]) -> list[Early]:
        """Claims whose flows have come.

        Those that have waited too long are forgotten.
        """
        if not self._words:
            return []
        now, come = self._clock(), []
        for key, (until_s, early) in list(self._words.items()):
            if until_s <= now:
                del self._words[key]
                self._lost(key[0])
            elif has_come(early):
                del self._words[key]
                come.append(early)
        return come


def meant(
    records: Sequence[int], claim: Claim, number_of: Callable[[bytes], int]
) -> Sequence[int]:
    """Those of one client's records that a claim may mean.

    Who knows a flow's protocol knows our end as the kernel does, too (`core.claims.flow_claim`).
    ``number_of`` gives the mirror's number of an address of ours.
    """
    if not claim.protocol:
        return records
    bit = UDP if claim.protocol == UDP_PROTO else 0
    found = tuple(record for record in records if record & UDP == bit)
    if claim.local is None:
        return found
    end = claim.local.port, number_of(claim.local.address)
    return tuple(
        record
        for record in found
        if (port(record), record >> ADDRESS_SHIFT & MAX_ADDRESSES - 1) == end
    )
