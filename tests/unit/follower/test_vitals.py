"""What the follower's counters did lately, and whether what bears marks passes the classes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vff_qos.core.settings import Settings
from vff_qos.follower.vitals import Vitals
from vff_qos.sources.clock import Clock


class Node:
    """Bytes that a user's class has sent, and the time."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.bytes = [0, 0]
        self.vitals = Vitals(
            Settings(wan="wan0", sources=()), Clock(lambda: self.now_s, lambda: self.now_s)
        )

    def sent(self, direction: int) -> Mapping[int, int]:
        return {2: self.bytes[direction]}

    def look(self, marked: int, repairs: int = 0, up: int = 0, down: int = 0) -> None:
        """Ten seconds later, with so many marks until then."""
        self.now_s += 10
        self.bytes = [self.bytes[0] + up, self.bytes[1] + down]
        self.vitals.tick((), {"marked": marked, "repairs": repairs})
        self.vitals.look_at_traffic(self.sent)


def test_marks_without_bytes_are_told() -> None:
    node = Node()
    node.look(marked=1)
    node.look(marked=9)
    traffic = node.vitals.traffic
    assert traffic is not None
    assert (traffic.marked, traffic.up_bytes, traffic.down_bytes) == (8, 0, 0)
    node.look(marked=20, up=100, down=200)
    traffic = node.vitals.traffic
    assert traffic is not None and (traffic.up_bytes, traffic.down_bytes) == (100, 200)


@pytest.mark.parametrize("first", [True, False])
def test_what_passed_before_a_repair_says_nothing_of_now(first: bool) -> None:
    """Filters were missing when the connections began; afterwards they are silent."""
    node = Node()
    node.look(marked=1)
    if first:
        node.look(marked=9)
    node.look(marked=12, repairs=1)
    assert node.vitals.traffic is None
    node.look(marked=12, repairs=1)
    assert node.vitals.traffic is None
    # What follows it counts.
    node.look(marked=24, repairs=1)
    assert node.vitals.traffic is not None


def test_what_moved_is_known_by_the_second() -> None:
    node = Node()
    node.look(marked=1)
    first = node.vitals.last["marked"]
    node.look(marked=1)
    assert node.vitals.last["marked"] == first
    node.look(marked=2)
    assert node.vitals.recent["marked"] == 1
