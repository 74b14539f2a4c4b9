"""Users are spread over trees by what they may use, and stay where they are."""

from __future__ import annotations

import pytest

from vff_qos.core.balance import HEAVY_BPS, Balance, wanted_bps
from vff_qos.core.owners import ACTIVE, PARKED, QUARANTINE, SPARE, Minors, Owner
from vff_qos.core.policy.model import Limits
from vff_qos.errors import Exhausted

MBIT = 10**6


def spread(trees: int, *rates_bps: int) -> tuple[list[int], Balance]:
    """The trees that users go to who come one after the other."""
    balance, minors, found = Balance(trees), Minors(0x5100, trees=trees), []
    for number, bps in enumerate(rates_bps):
        owner, _old = minors.take(f"u{number}", 0.0, balance.lightest(bps))
        balance.put(owner.minor, bps)
        found.append(owner.minor % trees)
    return found, balance


def test_the_next_user_goes_where_the_least_may_be_used() -> None:
    assert spread(2, 50 * MBIT, 50 * MBIT, 50 * MBIT, 50 * MBIT)[0] == [0, 1, 0, 1]
    # One of 500 Mbit/s is as much as ten of 50.
    assert spread(2, 500 * MBIT, *[50 * MBIT] * 11)[0] == [0, *[1] * 10, 0]
    assert spread(3, 30 * MBIT, 20 * MBIT, 10 * MBIT, 10 * MBIT)[0] == [0, 1, 2, 2]


def test_heavy_users_are_apart_whatever_the_others_use() -> None:
    unlimited = wanted_bps(Limits(None, 10 * MBIT))
    assert unlimited > HEAVY_BPS and wanted_bps(Limits(10, HEAVY_BPS)) == HEAVY_BPS
    # The first tree carries less, but has a heavy user already.
    assert spread(2, 2 * HEAVY_BPS, *[400 * MBIT] * 3, unlimited)[0] == [0, 1, 1, 1, 1]
    assert sorted(spread(4, *[unlimited] * 8)[0]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_who_leaves_or_has_another_limit_counts_so() -> None:
    found, balance = spread(2, 100 * MBIT, 100 * MBIT)
    assert found == [0, 1]
    balance.put(3, 10 * MBIT)
    assert balance.lightest(MBIT) == 1
    balance.remove(2)
    balance.remove(2)
    assert balance.lightest(MBIT) == 0


def test_a_user_who_comes_back_is_in_the_tree_of_before() -> None:
    minors = Minors(0x5100, [Owner("a", 0x2B, PARKED)], trees=2)
    assert minors.take("a", 1.0, 0)[0].minor == 0x2B


def test_a_tree_without_spare_classes_gets_a_new_one_before_another_tree_is_used() -> None:
    spare = [Owner(f"{SPARE}{minor:x}", minor, PARKED) for minor in (2, 4)]
    minors = Minors(0x5100, spare, trees=2)
    assert minors.take("a", 1.0, 1)[0].minor == 3
    assert [minors.take(name, 1.0, 0)[0].minor for name in "bc"] == [2, 4]
    # Nobody has said where: where most wait.
    assert [owner.minor % 2 for owner in minors.spares(3, 1.0)] == [0, 1, 0]
    assert minors.take("d", 1.0)[0].minor % 2 == 0


@pytest.mark.parametrize("trees", [1, 2, 3, 64])
def test_all_minors_can_be_had_once_whichever_tree_is_wanted(trees: int) -> None:
    minors, taken = Minors(0x5100, trees=trees), set()
    with pytest.raises(Exhausted):
        for number in range(70_000):
            taken.add(minors.take(f"u{number}", 0.0, 0)[0].minor)
    reserved = 2 if trees == 1 else 256
    assert len(taken) == 0xFFFB - 2 + 1 - reserved
    assert all(owner.state == ACTIVE for owner in minors.by_minor.values())
    gone = minors.by_key["u7"]
    minors.forget(gone)
    assert minors.take("next", 0.0, trees - 1)[0].minor == gone.minor


def loads(trees: int, *users: tuple[int, int]) -> Balance:
    balance = Balance(trees)
    for minor, bps in users:
        balance.put(minor, bps)
    return balance


def test_the_user_moves_who_levels_two_trees_best() -> None:
    uneven = loads(2, (2, 500 * MBIT), (4, 400 * MBIT), (6, 50 * MBIT), (3, 10 * MBIT))
    assert uneven.better(set()) == (2, 1)
    assert uneven.better({2}) == (4, 1)
    assert uneven.better({2, 4, 6}) is None
    uneven.remove(2)
    uneven.put(5, 500 * MBIT)
    # 450 and 510: what is left is not worth a move.
    assert uneven.better(set()) is None
    # One who has a tree alone has nowhere to go.
    assert loads(2, (2, 900 * MBIT)).better(set()) is None


def test_heavy_users_move_apart_and_then_everybody_stays() -> None:
    balance = loads(4, *((2 + 4 * n, 2 * HEAVY_BPS) for n in range(6)))
    moves = 0
    while move := balance.better(set()):
        minor, tree = move
        balance.remove(minor)
        balance.put(1_000 + 4 * moves + tree, 2 * HEAVY_BPS)
        moves += 1
    assert moves == 4


def test_a_moved_user_leaves_a_minor_that_nobody_else_gets() -> None:
    minors = Minors(0x5100, trees=2)
    alice = minors.take("alice", 1.0, 0)[0]
    moved, displaced, left = minors.move(alice, 1, "\x022", 5.0)
    assert (alice.minor, moved.minor, moved.key, displaced) == (2, 3, "alice", None)
    assert (left.minor, left.state, left.key) == (2, QUARANTINE, "\x022")
    assert minors.by_key["alice"] is moved and minors.by_minor[2] is left
    assert minors.take("bob", 6.0, 0)[0].minor == 4
    for number in range(0x8000):
        minors.take(f"u{number}", 7.0, 0)
    bob = minors.by_key["bob"]
    with pytest.raises(Exhausted):
        while True:
            minors.take(f"v{len(minors.by_key)}", 7.0, 1)
    with pytest.raises(Exhausted):
        minors.move(bob, 1, "\x024", 8.0)
    assert minors.by_key["bob"] is bob and minors.by_minor[4] is bob
