"""Minors: who has which, forever."""

from __future__ import annotations

import pytest

from vff_qos.core.htb import classid, format_classid, usable_minor
from vff_qos.core.owners import (
    ACTIVE,
    DEFAULT_SHARED,
    FEW_CLASSES,
    PARKED,
    QUARANTINE,
    RESTRICTED_KEY,
    RESTRICTED_MAX,
    SPARE,
    Minors,
    Owner,
    without_class,
)
from vff_qos.errors import Exhausted
from vff_qos.render import display_name

MAJOR = 0x5100


def test_a_user_keeps_the_minor() -> None:
    minors = Minors(MAJOR)
    first = minors.take("a", 1.0)[0].minor
    assert minors.take("b", 2.0)[0].minor != first
    assert minors.take("a", 3.0) == (minors.by_key["a"], None)
    assert minors.by_key["a"].minor == first
    again = Minors(MAJOR, [Owner("a", first, PARKED), Owner("c", 77)])
    assert again.take("a", 4.0)[0].minor == first
    assert again.by_key["a"].state == ACTIVE


def test_parked_minors_are_reused_oldest_first_and_quarantined_ones_never() -> None:
    minors = Minors(
        MAJOR,
        [
            Owner("new", 10, PARKED, moved=9.0),
            Owner("old", 11, PARKED, moved=5.0, up_seen=7, down_seen=8),
            Owner("resting", 12, QUARANTINE, moved=1.0),
        ],
    )
    owner, displaced = minors.take("a", 20.0)
    assert (owner.minor, owner.up_seen, owner.down_seen) == (11, 7, 8)
    assert displaced is not None
    assert displaced.key == "old"
    assert minors.take("b", 20.0)[0].minor == 10
    assert minors.take("c", 20.0)[0].minor == 13
    assert minors.take("resting", 20.0)[0].minor == 12


def test_no_minor_is_given_twice_and_exhaustion_has_a_name() -> None:
    minors = Minors(MAJOR)
    seen = {minors.take(f"u{n}", 0.0)[0].minor for n in range(65_528)}
    assert len(seen) == 65_528
    assert all(usable_minor(MAJOR, minor) for minor in seen)
    for _ in range(1_000):  # once took milliseconds each
        with pytest.raises(Exhausted, match="newcomers share one class"):
            minors.take("one too many", 0.0)
    shared = minors.overflow(1.0)
    assert minors.overflow(2.0) is shared
    assert (shared.key, shared.minor, shared.state) == (DEFAULT_SHARED, 0xFFFD, ACTIVE)
    assert minors.restricted("01020304", 0.0) is minors.restricted("05060708", 0.0)
    assert minors.restricted("01020304", 0.0).minor == 0xFFFC
    assert minors.spares(5, 0.0) == []
    minors.forget(minors.by_key["u7"])
    assert minors.take("one too many", 0.0)[0].minor in seen


def test_the_mark_is_the_classid() -> None:
    assert classid(MAJOR, 0x2A) == 0x5100002A
    assert format_classid(0x5100002A) == "5100:2a"
    # The handles of the tree and of its splitter are no leaf's.
    assert not usable_minor(MAJOR, MAJOR)
    assert not usable_minor(MAJOR, MAJOR + 1)


def test_spare_minors_are_given_first_and_leave_no_trace() -> None:
    minors = Minors(MAJOR, [Owner("parked", 9, PARKED, moved=5.0)])
    spares = minors.spares(2, 10.0)
    assert [spare.minor for spare in spares] == [10, 11]
    assert [display_name(spare.key) for spare in spares] == ["(spare)"] * 2
    assert not any(spare.is_user for spare in spares)
    # They survive a restart, wherever they stand.
    minors = Minors(MAJOR, [*spares[::-1], minors.by_key["parked"]])
    assert minors.pooled == 3
    taken = [minors.take(name, 20.0) for name in ("a", "b", "c", "d")]
    assert [owner.minor for owner, _displaced in taken] == [11, 10, 9, 12]
    assert [old.key for _owner, old in taken if old] == ["\x03b", "\x03a", "parked"]
    assert minors.pooled == 0
    assert sorted(minors.by_key) == ["a", "b", "c", "d"]


def test_restricted_classes_are_bounded_and_cost_users_nothing() -> None:
    minors = Minors(MAJOR)
    own = [minors.restricted(f"{n:08x}", 1.0) for n in range(RESTRICTED_MAX)]
    assert len({owner.minor for owner in own}) == RESTRICTED_MAX
    common = minors.restricted("ffffffff", 2.0)
    assert common.key == RESTRICTED_KEY
    assert common.minor not in {owner.minor for owner in own}
    assert minors.restricted("eeeeeeee", 2.0) is common
    assert minors.restricted("00000005", 3.0) is own[5]
    assert display_name(common.key) == "(restricted) all further addresses"
    # Whoever is collected makes room.
    own[5].state = PARKED
    again = Minors(MAJOR, minors.by_key.values())
    assert again.restricted("eeeeeeee", 4.0).key == RESTRICTED_KEY + "eeeeeeee"
    assert again.restricted("dddddddd", 4.0).key == RESTRICTED_KEY
    # Where classes are many, half of the pool is for users.
    many = [Owner(f"u{n}", 100 + n) for n in range(FEW_CLASSES)]
    minors = Minors(MAJOR, [*many, *Minors(MAJOR).spares(4, 0.0)], reserve=2)
    keys = [minors.restricted(f"{n:08x}", 1.0).key for n in range(6)]
    assert sum(key != RESTRICTED_KEY for key in keys) == 3
    assert minors.pooled == 1


def test_a_user_of_before_keeps_a_minor_that_is_set_apart_now() -> None:
    minors = Minors(MAJOR, [Owner("early", 0xFFFD)])
    assert minors.overflow(1.0).minor == 2
    assert minors.by_minor[0xFFFD].key == "early"
    assert minors.take("a", 1.0)[0].minor == 3


def test_a_class_set_apart_whose_owner_was_lost_is_given_to_no_user() -> None:
    minors = Minors(MAJOR, [Owner("\x02fffd", 0xFFFD, PARKED)])
    assert minors.take("a", 1.0)[0].minor == 2
    shared = minors.overflow(1.0)
    assert (shared.key, shared.minor) == (DEFAULT_SHARED, 0xFFFD)
    assert minors.by_minor[0xFFFD] is shared
    assert len(minors.by_key) == 2


def test_what_is_missing_is_made_in_the_order_of_need() -> None:
    owners = [
        Owner("long ago", 2, moved=1.0),
        Owner("just now", 3, moved=9.0),
        Owner("has one", 4, moved=5.0),
        Owner(f"{RESTRICTED_KEY}01020304", 5, moved=9.0),
        Owner("resting", 6, QUARANTINE, moved=9.0),
        Owner("parked late", 7, PARKED, moved=8.0),
        Owner("parked early", 8, PARKED, moved=7.0),
        Owner(f"{SPARE}9", 9, PARKED),
    ]
    minors = Minors(MAJOR, owners)

    def names(pool_min: int) -> list[str]:
        return [owner.key for owner in without_class(minors, {4}.__contains__, pool_min)]

    assert names(0) == ["just now", "long ago"]
    assert names(2) == ["just now", "long ago", f"{SPARE}9", "parked early"]
    assert without_class(minors, set(range(10)).__contains__, 9) == []
