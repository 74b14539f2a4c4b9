"""Who may be collected: decisions of ``vff-qos gc``, from counters and conntrack alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .owners import ACTIVE, PARKED, QUARANTINE, Owner
from .settings import GcSettings


@dataclass
class GcPlan:
    """What one collection does; every owner stands in at most one list of actions."""

    #: Idle: the class gets the prio of parked ones; its minor rests in quarantine.
    park: list[Owner] = field(default_factory=list)
    #: No flow bears the mark any more: the class may be reused.
    release: list[Owner] = field(default_factory=list)
    #: More parked classes than the pool holds: oldest first.
    delete: list[Owner] = field(default_factory=list)
    #: Counters moved: only bookkeeping.
    moved: list[Owner] = field(default_factory=list)
    #: (owner, why it stays)
    kept: list[tuple[Owner, str]] = field(default_factory=list)


def plan_collection(
    owners: Iterable[Owner],
    up_bytes: Mapping[int, int],
    down_bytes: Mapping[int, int],
    marked: Mapping[int, int],
    now_s: float,
    settings: GcSettings,
    static: Collection[int] = (),
) -> GcPlan:
    """Decide on every owner.

    ``up_bytes`` and ``down_bytes`` are class counters by minor on IFB and WAN, ``marked`` the
    number of conntrack entries by minor, ``static`` the minors of static identities: the kernel
    gives their marks to whoever comes, so that they are never collected.  Owners are not changed.
    """
    plan = GcPlan()
    parked = []
    for owner in owners:
        if owner.minor in static:
            if owner.state == ACTIVE and _has_moved(owner, up_bytes, down_bytes, now_s):
                plan.moved.append(owner)
            else:
                plan.kept.append((owner, "a service or a network"))
        elif owner.state == PARKED:
            parked.append(owner)
        elif owner.state == QUARANTINE:
            if marked.get(owner.minor):
                plan.kept.append((owner, "quarantine: flows still bear its mark"))
            else:
                plan.release.append(owner)
                parked.append(owner)
        else:
            _active(plan, owner, up_bytes, down_bytes, marked, now_s, settings)
    parked += [owner for owner in plan.park if not marked.get(owner.minor)]
    surplus = len(parked) - settings.pool_max
    if surplus > 0:
        parked.sort(key=lambda owner: owner.moved)
        plan.delete = parked[:surplus]
    return plan


def _active(
    plan: GcPlan,
    owner: Owner,
    up: Mapping[int, int],
    down: Mapping[int, int],
    marked: Mapping[int, int],
    now_s: float,
    settings: GcSettings,
) -> None:
    if owner.is_common:
        plan.kept.append((owner, "many share it"))
    elif _has_moved(owner, up, down, now_s):
        plan.moved.append(owner)
    elif now_s - owner.since < settings.min_age_s:
        plan.kept.append((owner, f"younger than {settings.min_age_s} s"))
    elif now_s - owner.moved < settings.idle_s:
        plan.kept.append((owner, f"idle for {now_s - owner.moved:.0f} of {settings.idle_s} s"))
    elif settings.check_conntrack and marked.get(owner.minor):
        plan.kept.append((owner, f"idle, but has {marked[owner.minor]} flows"))
    else:
        plan.park.append(owner)


def _has_moved(owner: Owner, up: Mapping[int, int], down: Mapping[int, int], now_s: float) -> bool:
    seen = (up.get(owner.minor, 0), down.get(owner.minor, 0))
    # A clock that was set back must not make anybody idle, nor immortal.
    return seen != (owner.up_seen, owner.down_seen) or owner.moved > now_s
