"""What the shaping promises beyond the limits: fair shares of a full node, short round trips.

Each trial needs a node on which the role was run with the variables of `trial_variables`, and an
engine that knows TRIAL_USERS.  Figures are returned; what is good enough is for others to say.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from .labnode import Lab
from .progress import step
from .users import MBIT, Direction, User, role_variables

WEIGHTS = {"basic": 1, "plus": 2}
#: A full node: ten users want five times of what there is.
FAIR_CEIL, FAIR_LIMIT = 20 * MBIT, 10 * MBIT
#: More than the emulated node can move; packets are split with it, and are not without one.
SPLIT_CEIL = "400mbit"
#: What the node's kernel needs for this. Behind round trips below a millisecond the first moment of
#: a connection makes its buffer grow to megabytes, and 80 of them are more than the node's TCP may
#: hold: docs/TROUBLESHOOTING.md says what happens then.
_FAIR_KERNEL = {"net.ipv4.tcp_rmem": "4096 131072 262144"}
#: What users upload leaves the node again by the same device, as nobody's and by connections: it
#: must not be this that is full. The agent would put it right.
_FREE_EGRESS = " && ".join(
    [
        "systemctl stop vff-qos-follow",
        *(
            f"tc class change dev wan0 parent 5100:{parent} classid 5100:{minor} "
            "htb rate 1gbit burst 64k cburst 64k quantum 60000"
            for parent, minor in (("", "1"), ("1", "fffe"))
        ),
    ]
)
#: Of five users in each plan.  More flows than these overload the emulation, not the tree.
_FLOWS = {"basic": (1, 1, 2, 8, 32), "plus": (1, 2, 4, 8, 16)}
FAIR_USERS = tuple(
    User(f"{plan}{number:02d}@lab", "vless", FAIR_LIMIT, FAIR_LIMIT, flows=flows)
    for plan in WEIGHTS
    for number, flows in enumerate(_FLOWS[plan])
)
#: Whose round trips are measured, and a neighbour who has much more to send.
PINGED = User("pinged@lab", "vless", 20 * MBIT, 20 * MBIT)
NEIGHBOUR = User("neighbour@lab", "vless", 50 * MBIT, 50 * MBIT, flows=4)
#: So much of a limit leaves no queue behind it, in bytes of payload.
_NEAR = 0.85
#: One for each transport; the sweep sets their limits.
SWEPT = {
    "tcp": User("tcp@lab", "vless", 20 * MBIT, 20 * MBIT),
    "udp": User("udp@lab", "shadowsocks", 20 * MBIT, 20 * MBIT, udp=True),
}
TRIAL_USERS = (*FAIR_USERS, PINGED, NEIGHBOUR, *SWEPT.values())

_SETTINGS = "/etc/vff-qos/settings.yml"
RESTART = "systemctl restart vff-qos-bootstrap vff-qos-follow"
_DROP_IN = "/etc/vff-qos/policy.d/trial.yml"


def trial_variables(users: Sequence[User] = ()) -> dict[str, Any]:
    """The role's variables for the trials and for more `users`."""
    rates = {"upload": f"{FAIR_LIMIT // MBIT}mbit", "download": f"{FAIR_LIMIT // MBIT}mbit"}
    return role_variables((*users, PINGED, NEIGHBOUR, *SWEPT.values())) | {
        "qos_wan_ceil": SPLIT_CEIL,
        "qos_plans": {plan: {**rates, "weight": weight} for plan, weight in WEIGHTS.items()},
        "qos_match": [{"pattern": f"{plan}??@lab", "plan": plan} for plan in WEIGHTS],
    }


class Fairness(NamedTuple):
    """Shares of a full node."""

    rates_bps: dict[str, float]
    worst_pct: float  # how far a user is from the plan's median
    weight_ratio: float  # median of plus over median of basic; WEIGHTS say what it should be
    alone_bps: float  # what one of them gets while the others are silent, before


@contextmanager
def easily_full(lab: Lab) -> Iterator[None]:
    """The node with a ceiling that few users fill, and back."""
    ceil = {"wan_ceil": f"{FAIR_CEIL // MBIT}mbit"}
    with settings_by_hand(lab, ceil, RESTART), kernel_settings(lab, _FAIR_KERNEL):
        yield


def fairness(lab: Lab, direction: Direction) -> Fairness:
    """Fill a node that is `easily_full` with users of two plans, who have 1 to 32 flows each."""
    # An upload before has stopped it.
    lab.node.ssh("systemctl start vff-qos-follow")
    # First: whoever has had the node alone must not pay for it afterwards.
    alone = lab.measure(direction, 8, users=FAIR_USERS[:1], idle_s=0.5, warmup_s=10)
    with step(f"filling the node, {direction} of {len(FAIR_USERS)} users"):
        run = lab.start_traffic(direction, 20, users=FAIR_USERS, warmup_s=20, idle_s=0.5)
        if direction == "upload":
            # Those that carry the data, and iperf3's own.
            lab.await_marks(sum(user.flows for user in FAIR_USERS) + len(FAIR_USERS))
            lab.node.ssh(_FREE_EGRESS)
        report = run.result()
    medians, worst = {}, 0.0
    for plan in WEIGHTS:
        own = [m for m in report.measurements if m.user.email.startswith(plan)]
        medians[plan] = statistics.median(m.measured_bps for m in own)
        worst = max(worst, *(100 * abs(m.measured_bps / medians[plan] - 1) for m in own))
    return Fairness(
        {m.user.email: m.measured_bps for m in report.measurements},
        worst,
        medians["plus"] / medians["basic"],
        alone.measurements[0].measured_bps,
    )


class RoundTrips(NamedTuple):
    """Round trips of a small echo on a user's connection, in milliseconds (medians)."""

    idle_ms: float
    near_ms: float | None  # while somebody sends a little less than their limit: no queue
    full_ms: float  # while they send all they can

    @property
    def load_ms(self) -> float:
        """What the load adds, to the network's queues and to those for the node's processors."""
        return self.full_ms - self.idle_ms

    @property
    def queue_ms(self) -> float:
        """What the limit adds: an emulated node's processors are as busy a little below it."""
        return self.full_ms - max(self.near_ms or 0.0, self.idle_ms)


def latency(lab: Lab, direction: Direction, near: bool = True) -> tuple[RoundTrips, RoundTrips]:
    """Round trips of a user while they load their own limit, then while only a neighbour does.

    `near`: also while the load is a little below the limit.
    """
    silent = replace(PINGED, flows=0)
    return (
        _round_trips(lab, direction, [], PINGED, near),
        _round_trips(lab, direction, [silent], NEIGHBOUR, near),
    )


def _round_trips(
    lab: Lab, direction: Direction, others: list[User], busy: User, near: bool
) -> RoundTrips:
    limit = busy.limit(direction)
    assert limit
    below = replace(busy, offered=int(_NEAR * limit), block_s=0.01)
    seen = [
        lab.measure(direction, 10, users=[*others, user], idle_s=4)[PINGED.email]
        for user in ([below, busy] if near else [busy])
    ]
    idle_ms = statistics.mean(one.ping_idle_ms for one in seen)
    return RoundTrips(idle_ms, seen[0].ping_ms if near else None, seen[-1].ping_ms)


def accuracy(
    lab: Lab, rate_bps: int, direction: Direction, transport: str, flows: int
) -> dict[str, Any]:
    """One point of the sweep: what a user with this limit gets, in bit/s of wire bytes."""
    email = SWEPT[transport].email
    rate = f"{rate_bps // MBIT}mbit"
    lab.node.write(_DROP_IN, f"users: {{{email}: {{upload: {rate}, download: {rate}}}}}\n")
    lab.node.ssh("vff-qos policy apply")
    user = replace(SWEPT[transport], download=rate_bps, upload=rate_bps, flows=flows)
    m = lab.measure(direction, 8, users=[user], idle_s=0.5, warmup_s=5)[email]
    return {
        "rate_bps": rate_bps,
        "direction": direction,
        "transport": transport,
        "flows": flows,
        "measured_bps": round(m.measured_bps),
        "error_pct": round(m.error_pct or 0.0, 2),
    }


@contextmanager
def settings_by_hand(lab: Lab, values: dict[str, str], then: str) -> Iterator[None]:
    """Other values in the node's settings, as an operator edits them, and back.

    `then` is the command that puts either in force.
    """
    edits = " ".join(f"-e 's/^\\( *\\){key}:.*/\\1{key}: {to}/'" for key, to in values.items())
    lab.node.ssh(f"cp -p {_SETTINGS} {_SETTINGS}.trial && sed -i {edits} {_SETTINGS} && {then}")
    try:
        yield
    finally:
        lab.node.ssh(f"mv {_SETTINGS}.trial {_SETTINGS} && {then}")


@contextmanager
def kernel_settings(lab: Lab, values: dict[str, str]) -> Iterator[None]:
    """Other kernel settings of the node, and back."""
    names = list(values)
    before = [lab.node.ssh(f"sysctl -n {name}").strip() for name in names]

    def put(to: Iterable[str]) -> None:
        pairs = zip(names, to, strict=True)
        lab.node.ssh(" && ".join(f"sysctl -qw {name}='{value}'" for name, value in pairs))

    put(values.values())
    try:
        yield
    finally:
        put(before)
