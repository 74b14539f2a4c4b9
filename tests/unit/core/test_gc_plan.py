"""Who is idle, and what becomes of their class."""

from __future__ import annotations

from vff_qos.core.gc_plan import plan_collection
from vff_qos.core.owners import (
    DEFAULT_SHARED,
    QUARANTINE,
    RESTRICTED_KEY,
    Minors,
    Owner,
)
from vff_qos.core.settings import GcSettings

MAJOR = 0x5100


NOW = 1_000_000.0
RULES = GcSettings(idle_s=100, min_age_s=50, pool_max=10)


def _old(key: str, minor: int, **other: float) -> Owner:
    return Owner(key, minor, since=NOW - 1000, moved=other.get("moved", NOW - 500))


def test_only_the_idle_are_parked() -> None:
    owners = [
        _old("idle", 2),
        _old("has flows", 3),
        _old("moved", 4),
        Owner("young", 5, since=NOW - 10, moved=NOW - 10),
        _old("recent", 6, moved=NOW - 60),
        _old("clock went back", 7, moved=NOW + 60),
    ]
    plan = plan_collection(owners, {4: 1}, {}, {3: 2}, NOW, RULES)
    assert [owner.key for owner in plan.park] == ["idle"]
    assert [owner.key for owner in plan.moved] == ["moved", "clock went back"]
    assert {owner.key: why for owner, why in plan.kept} == {
        "has flows": "idle, but has 2 flows",
        "young": "younger than 50 s",
        "recent": "idle for 60 of 100 s",
    }


def test_without_the_conntrack_check_a_marked_minor_rests_in_quarantine() -> None:
    rules = GcSettings(idle_s=100, min_age_s=50, check_conntrack=False, pool_max=0)
    owner = _old("idle", 2)
    plan = plan_collection([owner], {}, {}, {2: 1}, NOW, rules)
    assert plan.park == [owner]
    assert plan.delete == []
    owner.state = QUARANTINE
    assert plan_collection([owner], {}, {}, {2: 1}, NOW, rules).release == []
    plan = plan_collection([owner], {}, {}, {}, NOW, rules)
    assert plan.release == plan.delete == [owner]


def test_a_class_that_many_share_is_never_collected() -> None:
    owners = [
        _old(key, minor) for key, minor in ((RESTRICTED_KEY, 0xFFFC), (DEFAULT_SHARED, 0xFFFD))
    ]
    plan = plan_collection(owners, {}, {}, {}, NOW, RULES)
    assert plan.park == plan.moved == []
    assert [why for _owner, why in plan.kept] == ["many share it"] * 2


def test_spare_classes_are_the_first_to_go_and_the_pool_keeps_its_size() -> None:
    rules = GcSettings(idle_s=100, min_age_s=50, pool_min=3, pool_max=3)
    spares = Minors(MAJOR).spares(3, NOW)
    assert plan_collection(spares, {}, {}, {}, NOW, rules).delete == []
    plan = plan_collection([_old("idle", 9), *spares], {}, {}, {}, NOW, rules)
    assert [owner.key for owner in plan.delete] == [spares[0].key]


def test_the_pool_keeps_the_youngest() -> None:
    rules = GcSettings(idle_s=100, min_age_s=50, pool_max=2)
    owners = [_old(f"u{n}", n, moved=NOW - 500 + n) for n in range(2, 6)]
    plan = plan_collection(owners, {}, {}, {}, NOW, rules)
    assert [owner.key for owner in plan.delete] == ["u2", "u3"]


def test_services_and_networks_are_never_collected_and_their_counters_are_noted() -> None:
    """The kernel gives their marks away at the first packet, whoever is away."""
    owners = [_old("service:idle", 2), _old("service:busy", 3), _old("alice", 4)]
    owners.append(Owner("service:resting", 5, QUARANTINE))
    plan = plan_collection(owners, {3: 9}, {}, {}, NOW, RULES, static={2, 3, 5})
    assert [owner.key for owner in plan.park] == ["alice"]
    assert [owner.key for owner in plan.moved] == ["service:busy"]
    assert {owner.key for owner, _why in plan.kept} == {"service:idle", "service:resting"}
    assert plan.release == plan.delete == []
