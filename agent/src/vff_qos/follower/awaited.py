"""Words that came before their flows: who is told in advance waits some seconds for the packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..core.claims.accesslog import UDP as UDP_PROTO
from ..core.claims.accesslog import Claim
from ..core.flows.record import UDP

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
    """At most one word for each client's end and protocol, the latest."""

    def __init__(self, clock: Callable[[], float], lost: Callable[[bytes], None]) -> None:
        """``clock`` never goes back; ``lost`` is told of each client whose flow never came."""
        self._clock, self._lost = clock, lost
        self._words: dict[tuple[bytes, int], tuple[float, Early]] = {}

    def __bool__(self) -> bool:
        return bool(self._words)

    def __iter__(self) -> Iterator[Early]:
        return iter([early for _until_s, early in self._words.values()])

    def add(self, early: Early) -> None:
        """No flow is there yet that this claim means."""
        key = early.client, early.claim.protocol
        self._words.pop(key, None)
        if len(self._words) >= MAX_WORDS:
            oldest = next(iter(self._words))
            del self._words[oldest]
            self._lost(oldest[0])
        self._words[key] = self._clock() + WAIT_S, early

    def take(self, find: Callable[[bytes], Sequence[int]]) -> list[Early]:
        """Claims whose flows have come; ``find`` gives the records of a client's end.

        Those that have waited too long are forgotten.
        """
        if not self._words:
            return []
        now, come = self._clock(), []
        for key, (until_s, early) in list(self._words.items()):
            if until_s <= now:
                del self._words[key]
                self._lost(key[0])
            elif of_protocol(find(early.client), early.claim.protocol):
                del self._words[key]
                come.append(early)
        return come


def of_protocol(records: Sequence[int], protocol: int) -> Sequence[int]:
    """Those of one client's records that a claim of this protocol (0: any) may mean."""
    if not protocol:
        return records
    bit = UDP if protocol == UDP_PROTO else 0
    return tuple(record for record in records if record & UDP == bit)
