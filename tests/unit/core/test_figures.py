"""Figures of users: two readings in, rates, shares and what holds somebody out."""

from __future__ import annotations

from typing import Any

from vff_qos.core.figures import (
    DOWNLOAD,
    SORTS,
    UPLOAD,
    Figures,
    Moment,
    natural,
    ordered,
    penalties,
    select,
)
from vff_qos.core.htb import CEIL_MINOR, ClassState, HtbClass
from vff_qos.core.owners import PARKED, RESTRICTED_KEY, Owner
from vff_qos.core.policy.overrides import OPERATOR, Override

NODE_BPS = 100_000_000


def state(ceil_bps: int, sent: int = 0, drops: int = 0, backlog: int = 0) -> ClassState:
    return ClassState(1, HtbClass(1, ceil_bps, 1, 1, 1), sent, 1, drops, backlog)


def moment(seconds: float = 2.0, node_bytes: int = 0, **more: Any) -> Moment:
    """Alice (2) at her upload limit, Bob (3) idle; Carol (4) has a class on one device only."""
    up = {2: state(8_000_000, 5_000_000, 3), 3: state(8_000_000), 1: state(NODE_BPS)}
    down = {2: state(80_000_000, 9_000_000, 4), 3: state(8_000_000), 4: state(8_000_000),
            1: state(NODE_BPS)}  # fmt: skip
    return Moment(
        0x5100,
        (up, down),
        ({2: 3_000_000, 3: 0, 1: 0}, {2: 8_000_000, 3: 0, 1: 0}),
        ({2: 5_000_000, 3: 0, 1: 0}, {2: 9_000_000, 3: 0, 4: 0, 1: node_bytes}),
        seconds,
        flows={2: 7},
        addresses={2: 2},
        **more,
    )


def of(found: Moment, minor: int, key: str = "alice@x") -> Figures:
    return Figures(found, Owner(key, minor), key)


def test_rates_are_the_bits_between_two_readings_by_their_time() -> None:
    alice = of(moment(), 2)
    assert (alice.up_rate_bps, alice.down_rate_bps) == (8_000_000, 4_000_000)
    assert alice.share == 1.0
    assert (alice.up_bytes, alice.down_bytes, alice.drops) == (5_000_000, 9_000_000, 7)
    assert (alice.flows, alice.addresses) == (7, 2)


def test_without_a_second_reading_there_is_no_rate() -> None:
    assert of(moment(0.0), 2).up_rate_bps == 0


def test_a_class_that_was_made_anew_has_no_rate_and_not_a_negative_one() -> None:
    found = moment()
    found.after[UPLOAD][2] = 1_000  # type: ignore[index]
    assert found.rate_bps(UPLOAD, 2) == 0
    assert found.rate_bps(DOWNLOAD, 4) == 0  # it was not there before


def test_a_user_without_a_class_is_shown_and_held_by_nothing() -> None:
    carol = of(moment(), 4, "carol@x")
    assert carol.to_json()["upload_bps"] is None
    assert carol.held_by == ""


def test_what_holds_somebody_is_told_by_the_more_telling_direction() -> None:
    assert of(moment(), 2).held(UPLOAD) == "limit"
    assert of(moment(), 2).held(DOWNLOAD) == ""
    assert of(moment(), 2).held_by == "limit"
    assert of(moment(penalties={"alice@x": "20GB in 24h"}), 2).held_by == "penalty"
    assert of(moment(node_bytes=25_000_000), 2).held(DOWNLOAD) == "node"
    assert of(moment(), 3, "bob@x").held_by == ""
    assert of(moment(in_doubt=frozenset({3})), 3, "bob@x").held_by == "restricted"
    assert of(moment(), 3, RESTRICTED_KEY + "01020304").held_by == "restricted"


def test_users_are_selected_by_pattern_and_ordered_by_what_is_asked() -> None:
    owners = [
        (Owner("alice@x", 2), "alice@x"), (Owner("bob@y", 3), "bob@y"),
        (Owner("gone@x", 9, PARKED), "gone@x"),
    ]  # fmt: skip
    everybody = select(moment(), owners)
    assert [one.name for one in everybody] == ["alice@x", "bob@y"]
    assert [one.name for one in select(moment(), owners, ["*@y", "z"])] == ["bob@y"]
    for sort in SORTS:
        assert ordered(everybody[::-1], sort)[0].name == ("bob@y" if sort == "name" else "alice@x")


def test_programs_and_screens_are_in_the_same_order() -> None:
    owners = [(Owner(f"u{minor}", minor), f"u{minor}") for minor in (3, 4, 2)]
    found = select(moment(), owners)
    as_json = [one.to_json() for one in found]
    for sort in SORTS:
        names = [one.name for one in ordered(found, sort)]
        assert [one["email"] for one in ordered(as_json, sort, dict.__getitem__)] == names


def override(origin: str, until: float | None = None, why: str = "") -> Override:
    return Override("alice@x", origin, {}, until, "root", why, 0.0)


def test_a_penalty_counts_unless_a_person_ordered_something_or_it_is_over() -> None:
    slow = override("fair use 1", 100.0, "20GB within 24h")
    assert penalties([slow], 50.0) == {"alice@x": "20GB within 24h"}
    assert penalties([override("quota", 100.0)], 50.0) == {"alice@x": "quota"}
    assert penalties([slow], 100.0) == {}
    assert penalties([slow, override(OPERATOR)], 50.0) == {}
    assert penalties([slow, override(OPERATOR, 20.0)], 50.0) == {"alice@x": "20GB within 24h"}


def test_natural_order() -> None:
    names = ["user10", "user2", "alice", "user1b"]
    assert sorted(names, key=natural) == ["alice", "user1b", "user2", "user10"]


def test_the_whole_node_is_the_class_above_all() -> None:
    assert moment(node_bytes=25_000_000).rate_bps(DOWNLOAD, CEIL_MINOR) == NODE_BPS
