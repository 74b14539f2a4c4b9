"""Which of a user's flows have been silent for longest: what goes first where there are too many.

The kernel knows when a flow had its last packet, and asking costs 6 us a flow.  So nobody asks for
all: each flow stands in a queue by the last time at which it is known to have moved, its birth at
first.  Only those at the head are asked for; who has moved since goes back to where they belong.
What stays at the head has really been silent for longest.  Of equals the oldest comes first.

Pure: flows are found, and lives are asked for, by who calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from .mirror import Held
from .record import END, birth_ms

#: When a flow moved last, as far as is known, and its birth, both in ms of the mirror's clock.
_Waiting = tuple[int, int, bytes, int]

#: Flows asked for at once, and for one decision: 0.4 ms.  For the first one more: of several
#: hundred flows all are known from then on.
_ASKED, _MOST_ASKED, _FIRST_ASKED = 16, 64, 512
#: enum tcp_conntrack: LAST_ACK, TIME_WAIT, CLOSE.  Nothing passes any more.
_ENDING = frozenset((6, 7, 8))
_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT = 3, 4, 5


class Life(NamedTuple):
    """What the kernel says of a flow: how long it has left if no packet comes, the state of a TCP
    connection (enum tcp_conntrack; 0 for UDP), and whether both ends of a UDP flow have spoken for
    a while."""

    left_s: int
    tcp_state: int
    is_stream: bool

    @property
    def is_over(self) -> bool:
        """Whether nothing passes any more, although the table still has the flow."""
        return self.tcp_state in _ENDING


class Timeouts(NamedTuple):
    """How long the kernel keeps a flow after its last packet, in seconds: sysctls
    net.netfilter.nf_conntrack_*_timeout*."""

    established: int = 432_000
    #: Of a connection some of whose data has not been acknowledged, or was sent again.
    unacknowledged: int = 300
    retransmitted: int = 300
    fin_wait: int = 120
    close_wait: int = 60
    udp: int = 30
    udp_stream: int = 120

    def idle_s(self, life: Life) -> int:
        """For how long a flow has been silent."""
        left = life.left_s
        if not life.tcp_state:
            of_kind = [self.udp_stream if life.is_stream else self.udp]
        elif life.tcp_state == _ESTABLISHED:
            of_kind = [self.unacknowledged, self.retransmitted, self.established]
        else:
            of_kind = [self.close_wait if life.tcp_state == _CLOSE_WAIT else self.fin_wait]
        # The smallest that may have been given: one is never above what it was.
        return min((full - left for full in of_kind if full >= left), default=0)


class Chosen(NamedTuple):
    """What a look has found: flows that go, and flows that had ended by themselves."""

    quietest: list[Held]
    ended: list[Held]


class Quietest:
    """The flows of one user."""

    def __init__(self, flows: Iterable[Held]) -> None:
        self._waiting: list[_Waiting] = [
            (birth_ms(record), birth_ms(record), client, record) for client, record in flows
        ]
        heapify(self._waiting)
        self._most_asked = _FIRST_ASKED

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, client: bytes, record: int) -> None:
        """A new flow."""
        heappush(self._waiting, (birth_ms(record), birth_ms(record), client, record))

    def prune(self, holds: Callable[[bytes, int], bool]) -> None:
        """Forget flows that are not the user's any more."""
        self._waiting = [one for one in self._waiting if holds(one[2], one[3])]
        heapify(self._waiting)

    def choose(
        self,
        excess: int,
        now_ms: int,
        holds: Callable[[bytes, int], bool],
        ask: Callable[[list[Held]], list[Life | None]],
        timeouts: Timeouts,
        evict: bool = True,
    ) -> Chosen:
        """So many flows to end that those which have ended by themselves make up for the rest.

        ``holds`` says whether a flow is still the user's; ``evict`` False: look only for those that
        have ended.  At most 64 flows more than ``excess`` are asked for, the first time 512.
        """
        waiting = self._waiting
        seen: list[_Waiting] = []
        met: set[Held] = set()
        chosen = Chosen([], [])
        budget = self._most_asked + excess
        self._most_asked = _MOST_ASKED
        while excess > len(chosen.ended) + len(chosen.quietest):
            if evict and seen and (not waiting or budget <= 0 or seen[0] <= waiting[0]):
                _moved, _birth, client, record = heappop(seen)
                chosen.quietest.append((client, record))
                continue
            batch: list[Held] = []
            while waiting and len(batch) < min(_ASKED, budget):
                _moved, _birth, client, record = heappop(waiting)
                # A tuple that was used again stands here twice.
                if holds(client, record) and (flow := name(client, record)) not in met:
                    met.add(flow)
                    batch.append((client, record))
            if not batch:
                if not seen or not evict:
                    break
                budget = 0
                continue
            budget -= len(batch)
            for (client, record), life in zip(batch, ask(batch), strict=True):
                if life is None or life.is_over:
                    chosen.ended.append((client, record))
                else:
                    moved = now_ms - 1_000 * timeouts.idle_s(life)
                    heappush(seen, (moved, birth_ms(record), client, record))
        for one in seen:
            heappush(waiting, one)
        return chosen


def name(client: bytes, record: int) -> tuple[bytes, int]:
    """What tells one flow from all others that live at the same time."""
    return client, record & END
