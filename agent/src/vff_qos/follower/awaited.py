"""Words that came before their flows: who is told in advance waits some seconds for the packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..core.claims.accesslog import UDP as UDP_PROTO
from ..core.claims.accesslog import Claim, Endpoint
from ..core.flows.meeting import Fit
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
    """At most one word for each flow, as far as the words tell flows apart: the latest."""

    def __init__(self, clock: Callable[[], float], lost: Callable[[bytes], None]) -> None:
        """``clock`` never goes back; ``lost`` is told of each client whose flow never came."""
        self._clock, self._lost = clock, lost
        # Until when each waits, and whether it was given a flow that may be another's.
        self._words: dict[tuple[bytes, int, Endpoint | None], tuple[float, Early, bool]] = {}

    def __bool__(self) -> bool:
        return bool(self._words)

    def __iter__(self) -> Iterator[Early]:
        return iter([early for _until_s, early, _is_guessed in self._words.values()])

    def add(self, early: Early, is_guessed: bool = False) -> None:
        """No flow is there yet that this claim surely means; ``is_guessed``: one that it may mean
        is, and was given."""
        key = early.client, early.claim.protocol, early.claim.local
        self._words.pop(key, None)
        if len(self._words) >= MAX_WORDS:
            oldest = next(iter(self._words))
            _until_s, _early, was_guessed = self._words.pop(oldest)
            if not was_guessed:
                self._lost(oldest[0])
        self._words[key] = self._clock() + WAIT_S, early, is_guessed

    def take(self, arrival: Callable[[Early], Fit | None]) -> list[Early]:
        """Claims whose flows have come, or may have: these wait on for one that is surely theirs.

        ``arrival`` says how a flow that has come goes where the claim says; None: there is none.
        Those that have waited too long are forgotten.
        """
        if not self._words:
            return []
        now, come = self._clock(), []
        for key, (until_s, early, is_guessed) in list(self._words.items()):
            if until_s <= now:
                del self._words[key]
                if not is_guessed:
                    self._lost(key[0])
                continue
            fit = arrival(early)
            if fit is Fit.SURE:
                del self._words[key]
            elif fit is not None and not is_guessed:
                self._words[key] = until_s, early, True
            else:
                continue
            come.append(early)
        return come


def of_protocol(records: Sequence[int], protocol: int) -> Sequence[int]:
    """Those of one client's records that a claim of this protocol (0: any) may mean."""
    if not protocol:
        return records
    bit = UDP if protocol == UDP_PROTO else 0
    return tuple(record for record in records if record & UDP == bit)
