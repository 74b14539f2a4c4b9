"""Early shaping: which addresses qualify, and what is bounded."""

from __future__ import annotations

import random

from vff_qos.core import sole_users as early
from vff_qos.core.sole_users import BAR_S, KEEP_S, MAX_ADDRESSES, MAX_PER_USER, PROVE_S, SoleUsers

HOME, OFFICE = b"\xc6\x33\x64\x07", b"\xcb\x00\x71\x4d"


def proven(address: bytes = HOME, user: str = "alice", start_s: float = 0.0) -> SoleUsers:
    users = SoleUsers()
    users.saw(address, user, start_s)
    users.saw(address, user, start_s + PROVE_S)
    return users


def test_an_address_must_have_been_one_users_for_a_while() -> None:
    users = SoleUsers()
    for now in (0.0, 1.0, PROVE_S - 1):
        users.saw(HOME, "alice", now)
    assert not users.added and not users.holds(HOME) and users.proven(PROVE_S) == {}
    users.saw(HOME, "alice", PROVE_S)
    assert users.added == {HOME: "alice"} == users.proven(PROVE_S)
    assert users.holds(HOME) and not users.holds(OFFICE)


def test_a_second_user_bars_an_address_at_once_and_for_long() -> None:
    users = proven()
    now = PROVE_S + 1
    users.saw(HOME, "bob", now)
    assert users.removed == {HOME} and users.added == {} == users.proven(now)
    for user in ("alice", "bob"):
        users.saw(HOME, user, now + PROVE_S)
        users.saw(HOME, user, now + BAR_S - 1)
    assert users.proven(now + BAR_S - 1) == {}
    for later in (0.0, PROVE_S):
        users.saw(HOME, "alice", now + BAR_S + later)
    assert users.proven(now + BAR_S + PROVE_S) == {HOME: "alice"}


def test_an_address_is_forgotten_when_nobody_comes_from_it() -> None:
    users = proven()
    assert users.proven(PROVE_S + KEEP_S)
    assert users.proven(PROVE_S + KEEP_S + 1) == {}
    users = proven()
    # Whoever has the address now begins anew, and is no second user.
    users.saw(HOME, "bob", PROVE_S + KEEP_S + 1)
    assert users.removed == {HOME}
    users.saw(HOME, "bob", 2 * PROVE_S + KEEP_S + 1)
    assert users.proven(2 * PROVE_S + KEEP_S + 1) == {HOME: "bob"}


def test_an_ipv6_address_stands_for_its_64() -> None:
    net = bytes.fromhex("20010db800010002")
    users = SoleUsers()
    users.saw(net + b"\0" * 7 + b"\1", "alice", 0.0)
    users.saw(net + b"\xaa" * 8, "alice", PROVE_S)
    assert users.added == {net: "alice"}
    assert users.holds(net + b"\xbb" * 8)
    users.saw(net + b"\xcc" * 8, "bob", PROVE_S)
    assert users.proven(PROVE_S) == {}


def test_one_user_cannot_crowd_the_others_out() -> None:
    users = proven()
    for number in range(10 * MAX_PER_USER):
        for now in (PROVE_S, 2 * PROVE_S):
            users.saw(number.to_bytes(8, "big"), "mallory", now)
    held = users.proven(2 * PROVE_S)
    assert held.pop(HOME) == "alice"
    assert len(held) == MAX_PER_USER


def test_tables_are_bounded_and_what_is_dropped_is_told() -> None:
    users = SoleUsers()
    kernel: dict[bytes, str] = {}
    source = random.Random(5)
    now = 0.0
    for _ in range(60_000):
        now += 0.5
        number = source.randrange(2 * MAX_ADDRESSES)
        users.saw(number.to_bytes(4, "big"), f"u{number % 3_000 if number % 50 else now}", now)
        if source.random() < 0.01:
            for key in users.removed:
                del kernel[key]
            kernel.update(users.added)
            users.added.clear()
            users.removed.clear()
    for key in users.removed:
        del kernel[key]
    kernel.update(users.added)
    assert len(users._seen) <= MAX_ADDRESSES and len(users._barred) <= MAX_ADDRESSES
    assert len(users._of_user) == len({seen.user for seen in users._seen.values()})
    assert kernel == {key: seen.user for key, seen in users._seen.items() if seen.proven}
    assert kernel and early.MAX_PER_USER * 3_000 > MAX_ADDRESSES
