"""The text, read back by a parser that is not ours."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vff_qos.core.figures import Figures, Moment
from vff_qos.core.htb import ClassState, HtbClass
from vff_qos.core.owners import Owner
from vff_qos.metrics.exposition import exposition
from vff_qos.metrics.snapshot import Snapshot

#: Of a node that nobody has set up, where no agent runs.
BARE: dict[str, Any] = {
    "verdict": "TROUBLE",
    "findings": [{"kind": "not_set_up", "level": "TROUBLE"}] * 2,
    "version": "1.2.3",
    "time": 1_795_657_989.25,
    "disabled": None,
    "suspended": False,
    "follower": None,
    "collected": None,
    "tcp_memory": None,
    "conntrack": {"count": 7, "max": 100},
    "overrides": [],
}


def read(snapshot: Snapshot, most: int = 20) -> dict[str, dict[str, float]]:
    """{metric: {labels: value}}"""
    text = b"".join(exposition(snapshot, most)).decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            values = found.setdefault(sample.name, {})
            assert labels not in values, f"{sample.name} has {labels} twice"
            values[labels] = sample.value
    return found


def state(ceil_bps: int, drops: int = 0) -> ClassState:
    return ClassState(1, HtbClass(1, ceil_bps, 1, 1, 1), 0, 1, drops, 0)


def user(name: str, rate_bps: int = 4_000, penalty: str = "") -> Figures:
    """Somebody with a class for uploads alone, whose limit is 8 kbit/s."""
    moment = Moment(
        0x5100,
        ({1: state(10**9), 2: state(8_000, 3)}, {}),
        ({1: 0, 2: 0}, {}),
        ({1: 0, 2: rate_bps // 8}, {}),
        1.0,
        flows={2: 1},
        addresses={2: 2},
        penalties={name: penalty},
    )
    return Figures(moment, Owner(name, 2), name)


def test_what_is_not_known_is_left_out() -> None:
    """A 0 in its place would be a lie that no alert can tell from the truth."""
    assert read(Snapshot(BARE)) == {
        "vff_qos_build_info": {"version=1.2.3": 1},
        "vff_qos_snapshot_timestamp_seconds": {"": 1_795_657_989.25},
        "vff_qos_health": {"": 2},
        "vff_qos_finding": {"kind=not_set_up,level=TROUBLE": 1},
        "vff_qos_limits_lifted": {"": 0},
        "vff_qos_follower_up": {"": 0},
        "vff_qos_conntrack_entries": {"": 7},
        "vff_qos_conntrack_entries_limit": {"": 100},
        "vff_qos_overrides": {"origin=operator": 0, "origin=rule": 0},
    }


@pytest.mark.parametrize(("disabled", "suspended"), [({"who": "root"}, False), (None, True)])
def test_limits_may_be_lifted_in_two_ways(disabled: Any, suspended: bool) -> None:
    status = {**BARE, "disabled": disabled, "suspended": suspended}
    assert read(Snapshot(status))["vff_qos_limits_lifted"] == {"": 1}


def test_a_user_with_a_class_and_one_without() -> None:
    shown = read(Snapshot(BARE, [user("a@x")], {"a@x": (2**53 - 1, 0), "b@x": (1, 2)}))
    assert shown["vff_qos_user_limit_bytes_per_second"] == {"direction=upload,user=a@x": 1_000}
    assert shown["vff_qos_user_bytes_total"] == {
        "direction=upload,user=a@x": 2**53 - 1,
        "direction=download,user=a@x": 0,
        "direction=upload,user=b@x": 1,
        "direction=download,user=b@x": 2,
    }
    assert shown["vff_qos_user_dropped_packets_total"] == {"user=a@x": 3}
    assert shown["vff_qos_user_addresses"] == {"user=a@x": 2}
    assert shown["vff_qos_user_utilization_ratio"] == {"user=a@x": 0.5}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\\nb", "имя@x", "a\ufffd80", "{x}", "a,b=c"])
def test_a_name_stays_what_it_is(name: str) -> None:
    shown = read(Snapshot(BARE, [user(name)]))
    assert shown["vff_qos_user_connections"] == {f"user={name}": 1}


def test_who_is_held_is_counted_by_what_holds_them() -> None:
    users = [user("a", 8_000), user("b", 8_000, "quota"), user("c")]
    shown = read(Snapshot({**BARE, "devices": {}}, users))["vff_qos_users_held"]
    assert shown == {"by=penalty": 1, "by=limit": 1, "by=node": 0, "by=restricted": 0}


def test_metrics_are_given_one_by_one() -> None:
    pieces = list(exposition(Snapshot(BARE, [user("a")]), 20))
    assert all(piece.startswith(b"# HELP ") and piece.count(b"# HELP ") == 1 for piece in pieces)
