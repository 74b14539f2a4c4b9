"""Who floods: by weight, within a window, with bounded memory."""

from __future__ import annotations

from vff_qos.core.claims.flood import (
    ENOUGH,
    MAX_ADDRESSES,
    STRANGERS,
    USERS,
    WINDOW_S,
    FloodWatch,
)

HERE, THERE = b"\xc6\x33\x64\x07", b"\xcb\x00\x71\x07"


def saw(watch: FloodWatch, address: bytes, weight: int, times: int, gap_s: float = 0.0) -> None:
    for number in range(times):
        watch.saw(address, weight, number * gap_s)


def test_forty_connections_that_were_refused_are_a_flood() -> None:
    watch = FloodWatch()
    saw(watch, HERE, STRANGERS, ENOUGH // STRANGERS - 1)
    assert not watch.floods
    saw(watch, HERE, STRANGERS, 1)
    assert list(watch.floods) == [HERE]


def test_what_is_spread_over_time_or_addresses_is_none() -> None:
    watch = FloodWatch()
    saw(watch, HERE, STRANGERS, 1_000, gap_s=WINDOW_S * STRANGERS / ENOUGH * 1.2)
    for number in range(1_000):
        watch.saw(number.to_bytes(4, "big"), STRANGERS, 0.0)
    assert not watch.floods


def test_lines_of_a_users_connection_weigh_less() -> None:
    watch = FloodWatch()
    saw(watch, HERE, USERS, ENOUGH - 1)
    saw(watch, THERE, STRANGERS, ENOUGH // STRANGERS)
    assert list(watch.floods) == [THERE]
    saw(watch, HERE, USERS, 1)
    assert HERE in watch.floods


def test_no_number_of_addresses_fills_the_memory() -> None:
    watch = FloodWatch()
    for number in range(2 * MAX_ADDRESSES):
        watch.saw(number.to_bytes(4, "big"), USERS, 0.0)
    assert len(watch._seen) == MAX_ADDRESSES
