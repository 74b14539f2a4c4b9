"""Which flow goes first: the kernel is asked for few, and the answer is as if for all."""

from __future__ import annotations

from random import Random

import pytest

from vff_qos.core.flows.quietest import Life, Quietest, Timeouts
from vff_qos.core.flows.record import BIRTH_SHIFT

_TIMES = Timeouts()
_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT, _TIME_WAIT = 3, 4, 5, 7
_NOW_MS = 1_000_000_000
_Held = tuple[bytes, int]


class Kernel:
    """Flows and for how long each has been silent, in seconds; None: it has closed."""

    def __init__(self) -> None:
        self.idle_s: dict[_Held, int | None] = {}
        self.gone: set[_Held] = set()
        self.asked = 0

    def flow(self, number: int, born_ms: int, idle_s: int | None) -> _Held:
        made = number.to_bytes(6, "big"), born_ms << BIRTH_SHIFT
        self.idle_s[made] = idle_s
        return made

    def holds(self, client: bytes, record: int) -> bool:
        return (client, record) not in self.gone

    def ask(self, flows: list[_Held]) -> list[Life | None]:
        self.asked += len(flows)
        idle = [self.idle_s[flow] for flow in flows]
        return [
            Life(9, _TIME_WAIT, False) if s is None else Life(432_000 - s, _ESTABLISHED, False)
            for s in idle
        ]


def choose(queue: Quietest, kernel: Kernel, excess: int, evict: bool = True) -> list[_Held]:
    return queue.choose(excess, _NOW_MS, kernel.holds, kernel.ask, _TIMES, evict).quietest


def test_the_one_silent_for_longest_goes_first_and_of_equals_the_oldest() -> None:
    kernel = Kernel()
    flows = [kernel.flow(n, n, idle_s) for n, idle_s in enumerate((1, 50, 3, 90, 90))]
    assert choose(Quietest(flows), kernel, 3) == [flows[3], flows[4], flows[1]]


def test_a_decision_asks_for_few_and_ten_thousand_are_as_if_all_were_asked() -> None:
    kernel, random = Kernel(), Random(1)
    flows = [kernel.flow(n, n, random.randrange(2, 900)) for n in range(10_000)]
    queue = Quietest(flows)
    asked = []
    for _ in range(300):  # until each has been asked for once
        before = kernel.asked
        (victim,) = choose(queue, kernel, 1)
        asked.append(kernel.asked - before)
        kernel.gone.add(victim)
    assert max(asked) == asked[0] <= 513
    assert max(asked[1:]) <= 65
    left = {flow: kernel.idle_s[flow] or 0 for flow in flows if flow not in kernel.gone}
    assert left[choose(queue, kernel, 1)[0]] == max(left.values())


def test_what_has_closed_makes_room_and_nobody_is_ended_for_it() -> None:
    kernel = Kernel()
    flows = [kernel.flow(n, n, idle_s) for n, idle_s in enumerate((None, 50, None, 90))]
    for evict in (True, False):
        queue = Quietest(flows)
        found = queue.choose(2, _NOW_MS, kernel.holds, kernel.ask, _TIMES, evict)
        assert (found.quietest, found.ended) == ([], [flows[0], flows[2]])
        assert len(queue) == 2


def test_without_eviction_only_closed_ones_are_looked_for() -> None:
    kernel = Kernel()
    queue = Quietest([kernel.flow(n, n, 5) for n in range(100)])
    assert choose(queue, kernel, 1, evict=False) == []
    assert kernel.asked == len(queue) == 100
    assert choose(queue, kernel, 1, evict=False) == []
    assert kernel.asked == 165


def test_a_tuple_that_was_used_again_is_one_flow() -> None:
    kernel = Kernel()
    one, other = kernel.flow(1, 1, 50), kernel.flow(2, 2, 5)
    queue = Quietest([one, other])
    queue.add(*one)
    assert choose(queue, kernel, 2) == [one, other]


def test_flows_that_are_somebody_elses_are_left_alone() -> None:
    kernel = Kernel()
    flows = [kernel.flow(n, n, 50) for n in range(4)]
    queue = Quietest(flows)
    kernel.gone |= set(flows[:3])
    assert choose(queue, kernel, 2) == [flows[3]]
    queue.prune(kernel.holds)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("life", "idle_s"),
    [
        (Life(432_000, _ESTABLISHED, False), 0),
        (Life(431_970, _ESTABLISHED, False), 30),
        (Life(290, _ESTABLISHED, False), 10),  # data is on its way
        (Life(110, _FIN_WAIT, False), 10),
        (Life(50, _CLOSE_WAIT, False), 10),
        (Life(25, 0, False), 5),
        (Life(25, 0, True), 95),
        (Life(600, 0, True), 0),  # somebody gives it longer than the sysctl says
    ],
)
def test_for_how_long_a_flow_was_silent(life: Life, idle_s: int) -> None:
    assert _TIMES.idle_s(life) == idle_s
