"""Every metric: its name, what it means, and which figure of ``status`` or ``usage`` it is.

Names and units are as Prometheus asks for (https://prometheus.io/docs/practices/naming/): bytes,
seconds, ``_total`` for what only grows.  docs/METRICS.md is made of this table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.figures import DIRECTIONS
from ..core.health.findings import EXIT_CODES
from ..core.health.holding import KINDS
from ..core.policy.overrides import OPERATOR
from .snapshot import ShownUser, Snapshot

PREFIX = "vff_qos_"
GAUGE, COUNTER = "gauge", "counter"

#: Values of a metric's labels, in their order, and its value.
Point = tuple[tuple[str, ...], float]


@dataclass(frozen=True)
class MetricOf:
    """A metric of what a ``read`` function takes: of the node (`Snapshot`), or of one user.

    ``name`` is without the prefix; ``same_as`` names the figure for people.
    """

    name: str
    kind: str
    help: str
    same_as: str
    read: Callable[[Any], Iterable[Point]]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus has it."""
        return PREFIX + self.name


def _one(value: float | None) -> list[Point]:
    """A value without labels; none if there is none."""
    return [] if value is None else [((), value)]


def _status(*path: str) -> Callable[[Snapshot], list[Point]]:
    """A number of ``status --json`` by its keys; none where one of them is missing or null."""

    def read(snapshot: Snapshot) -> list[Point]:
        found: Any = snapshot.status
        for key in path:
            found = found.get(key) if found is not None else None
        return _one(found)

    return read


def _counts(keys: Mapping[str, str]) -> Callable[[Snapshot], Iterator[Point]]:
    """Counters of the follower, {label: key}; keys of its source's begin with ``log.``."""

    def read(snapshot: Snapshot) -> Iterator[Point]:
        follower = snapshot.status["follower"]
        for label, key in keys.items() if follower else ():
            inner = key.removeprefix("log.")
            counts = follower if inner == key else follower["log"]
            if inner in counts:
                yield (label,), counts[inner]

    return read


def _by_direction(key: str) -> Callable[[Snapshot], list[Point]]:
    def read(snapshot: Snapshot) -> list[Point]:
        devices = snapshot.status.get("devices", {})
        return [((direction,), devices[direction][key]) for direction in devices]

    return read


def _findings(snapshot: Snapshot) -> list[Point]:
    shown = {(found["kind"], found["level"]) for found in snapshot.status["findings"]}
    return [(labels, 1) for labels in sorted(shown)]


def _health(snapshot: Snapshot) -> list[Point]:
    return _one(EXIT_CODES[snapshot.status["verdict"]])


def _lifted(snapshot: Snapshot) -> list[Point]:
    return _one(bool(snapshot.status["disabled"] or snapshot.status["suspended"]))


def _of_sources(*path: str) -> Callable[[Snapshot], Iterator[Point]]:
    """What each source of the follower has at a path, as far as there is something."""

    def read(snapshot: Snapshot) -> Iterator[Point]:
        for source in _sources(snapshot):
            value: Any = source
            for key in path:
                value = value.get(key)
            if value is not None:
                yield (source["name"],), value

    return read


def _sources(snapshot: Snapshot) -> list[dict[str, Any]]:
    follower = snapshot.status["follower"]
    return list(follower["sources"]) if follower else []


def _waiting(snapshot: Snapshot) -> Iterator[Point]:
    for source in _sources(snapshot):
        yield (source["name"],), int(bool(source["waiting"]))


def _unusable(snapshot: Snapshot) -> Iterator[Point]:
    for source in _sources(snapshot):
        for reason in ("masked", "error_log", "torn", "unparsed"):
            if reason in source["log"]:
                yield (source["name"], reason), source["log"][reason]


def _repair_failed(snapshot: Snapshot) -> list[Point]:
    follower = snapshot.status["follower"]
    return _one(bool(follower["repair"]["failed"]) if follower else None)


def _is_set_up(snapshot: Snapshot) -> bool:
    return "devices" in snapshot.status


def _users(snapshot: Snapshot) -> list[Point]:
    return _one(len(snapshot.users) if _is_set_up(snapshot) else None)


def _active(snapshot: Snapshot) -> list[Point]:
    if not _is_set_up(snapshot):
        return []
    return _one(sum(bool(user.flows) for user in snapshot.users))


def _held(snapshot: Snapshot) -> Iterator[Point]:
    held = Counter(user.held_by for user in snapshot.users)
    for kind in filter(None, KINDS) if _is_set_up(snapshot) else ():
        yield (kind,), held[kind]


def _overrides(snapshot: Snapshot) -> list[Point]:
    orders = snapshot.status["overrides"]
    by_hand = sum(order["origin"] == OPERATOR for order in orders)
    return [(("operator",), by_hand), (("rule",), len(orders) - by_hand)]


def _ceiling(snapshot: Snapshot) -> list[Point]:
    ceil_bps = snapshot.status.get("ceil_bps")
    return _one(None if ceil_bps is None else ceil_bps / 8)


#: Of the node: few, whatever the number of users is.
NODE = (
    MetricOf("build_info", GAUGE, "Always 1; the version is in the label.", "status: version",
             lambda s: [((s.status["version"],), 1)], ("version",)),
    MetricOf("snapshot_timestamp_seconds", GAUGE, "When these figures were read.", "status: time",
             _status("time")),
    MetricOf("health", GAUGE,
             "Whether limits hold: 0 OK, 1 DEGRADED (in part), 2 TROUBLE (they do not).",
             "status: verdict, exit code", _health),
    MetricOf("finding", GAUGE,
             "1 for each kind of finding that there is now; none while nothing is wrong.",
             "status: findings", _findings, ("kind", "level")),
    MetricOf("limits_lifted", GAUGE, "1 while limits are lifted by hand (disable, suspend).",
             "status: disabled, suspended", _lifted),
    MetricOf("follower_up", GAUGE, "1 while the agent runs.", "status: follower",
             lambda s: _one(s.status["follower"] is not None)),
    MetricOf("follower_start_time_seconds", GAUGE, "When the agent was started.",
             "status: follower", _status("follower", "started")),
    MetricOf("source_waiting", GAUGE, "1 while a source of identities is missing.",
             "status: finding source_missing", _waiting, ("source",)),
    MetricOf("source_lines_total", COUNTER, "Lines, or events, that the source gave.",
             "status: claims", _of_sources("log", "lines"), ("source",)),
    MetricOf("source_claims_total", COUNTER, "Those of them that say whose a connection is.",
             "status --json: follower.sources.log.claims", _of_sources("log", "claims"),
             ("source",)),
    MetricOf("source_lines_unusable_total", COUNTER, "Those of them that are of no use, and why.",
             "status --json: follower.sources.log", _unusable, ("source", "reason")),
    MetricOf("source_lag_seconds", GAUGE, "For how long there has been more to read than was read.",
             "status: source", _of_sources("lag_s"), ("source",)),
    MetricOf("source_last_line_timestamp_seconds", GAUGE,
             "When the last line came; not there before the first since the agent's start.",
             "status --json: follower.sources.last_line_s", _of_sources("last_line_s"),
             ("source",)),
    MetricOf("source_last_claim_timestamp_seconds", GAUGE, "When the last claim came; likewise.",
             "status: source", _of_sources("last_claim_s"), ("source",)),
    MetricOf("marks_set_total", COUNTER, "Marks set on connections.", "status: claims",
             _status("follower", "marked")),
    MetricOf("marks_not_set_total", COUNTER,
             "Claims that set no mark: connection not found, address from a header (port 0), mark "
             "of other software, no class left, older than its connection.", "status: claims",
             _counts({"no_flow": "no_flow", "no_port": "log.no_port",
                      "foreign_mark": "foreign_mark", "exhausted": "exhausted", "stale": "stale"}),
             ("reason",)),
    MetricOf("restrictions_total", COUNTER, "Connections that were restricted, being in doubt.",
             "status: trust", _status("follower", "restricted")),
    MetricOf("conflicts_total", COUNTER, "Connections that two users claimed.", "status: trust",
             _status("follower", "conflicts")),
    MetricOf("claims_distrusted_total", COUNTER, "Claims that were ignored as a stranger's.",
             "status: trust", _status("follower", "ignored_tainted")),
    MetricOf("connections_known", GAUGE, "Live connections to the service ports.",
             "status: connections", _status("follower", "flows_known")),
    MetricOf("connections_claimed", GAUGE, "Those of them that are somebody's.",
             "status: connections", _status("follower", "flows_claimed")),
    MetricOf("connections_ended_total", COUNTER,
             "Connections that were ended because their user had too many: the silent ones "
             "(evicted) or the new ones (refused).", "status: too many connections",
             _counts({"evicted": "connections_evicted", "refused": "connections_refused"}),
             ("reason",)),
    MetricOf("devices_over_total", COUNTER,
             "How often an address was a device too many of its user, and what became of it.",
             "status: too many devices",
             _counts({"restricted": "devices_restricted", "refused": "devices_refused"}),
             ("effect",)),
    MetricOf("udp_followed_total", COUNTER,
             "UDP connections that moved and were followed by their QUIC connection ID.",
             "status: UDP that moved", _status("follower", "followed")),
    MetricOf("udp_handed_on_total", COUNTER,
             "UDP connections that moved and were given to the only user of their address.",
             "status: UDP that moved", _status("follower", "handed_on")),
    MetricOf("udp_ambiguous_total", COUNTER,
             "New UDP connections from addresses of several users.",
             "status: UDP that moved", _status("follower", "ambiguous_udp")),
    MetricOf("event_losses_total", COUNTER, "How often the kernel's events were lost.",
             "status: connections", _status("follower", "flows_lost_events")),
    MetricOf("repairs_total", COUNTER, "How often the agent made whole what others broke.",
             "status: trust", _status("follower", "repairs")),
    MetricOf("repair_failed", GAUGE, "1 if the last repair failed.",
             "status: finding repair_failed", _repair_failed),
    MetricOf("last_repair_timestamp_seconds", GAUGE,
             "When the last repair was; not there before the first.", "status: trust",
             _status("follower", "repair", "healed_s")),
    MetricOf("gc_last_run_timestamp_seconds", GAUGE, "When idle users were collected last.",
             "status: collected", _status("collected", "when")),
    MetricOf("accounts_read_timestamp_seconds", GAUGE,
             "Until when what users moved is booked: user_bytes_total is of then.",
             "usage: counted until", lambda s: _one(s.read_s)),
    MetricOf("conntrack_entries", GAUGE, "Connections of the whole host in the kernel's table.",
             "status: finding conntrack_full", _status("conntrack", "count")),
    MetricOf("conntrack_entries_limit", GAUGE, "How many that table takes.",
             "status: finding conntrack_full", _status("conntrack", "max")),
    MetricOf("tcp_memory_bytes", GAUGE, "What the host's TCP buffers.",
             "status: finding tcp_memory", _status("tcp_memory", "used_bytes")),
    MetricOf("tcp_memory_short", GAUGE, "1 while the kernel says that TCP is short of memory.",
             "status: finding tcp_memory", _status("tcp_memory", "is_short")),
    MetricOf("ceiling_bytes_per_second", GAUGE, "The node's ceiling, in each direction.",
             "status --json: ceil_bps", _ceiling),
    MetricOf("node_bytes_total", COUNTER,
             "What has passed the tree: users and what is nobody's. Begins at 0 with a new tree.",
             "status --json: devices.*.bytes", _by_direction("bytes"), ("direction",)),
    MetricOf("unclassified_bytes_total", COUNTER, "Of that, what is nobody's: it is not limited.",
             "status --json: devices.*.unclassified_bytes", _by_direction("unclassified_bytes"),
             ("direction",)),
    MetricOf("users", GAUGE, "Users with a class.", "status: users", _users),
    MetricOf("users_active", GAUGE, "Those of them with connections.", "status: users", _active),
    MetricOf("users_held", GAUGE,
             "Users by what holds them now: their limit, a penalty, the full node, a restriction.",
             "top: held by", _held, ("by",)),
    MetricOf("overrides", GAUGE, "Temporary limits: by a person, or penalties by a rule.",
             "status: overrides", _overrides, ("origin",)),
    MetricOf("restricted_addresses", GAUGE, "Addresses with connections in doubt.",
             "status: restricted", _status("restricted", "addresses")),
    MetricOf("restricted_connections", GAUGE, "Their live connections.", "status: restricted",
             _status("restricted", "flows")),
    MetricOf("classes_parked", GAUGE, "Classes of users who are away.", "status: classes parked",
             _status("parked")),
    MetricOf("classes_spare", GAUGE, "Classes made in advance.", "status: made in advance",
             _status("spare")),
)  # fmt: skip


def _moved(user: ShownUser) -> list[Point]:
    if user.moved is None:
        return []
    return [((direction,), moved) for direction, moved in zip(DIRECTIONS, user.moved, strict=True)]


def _limits(user: ShownUser) -> Iterator[Point]:
    for number, direction in enumerate(DIRECTIONS):
        limit_bps = user.figures.ceil_bps(number) if user.figures else None
        if limit_bps is not None:
            yield (direction,), limit_bps / 8


def _figure(name: str) -> Callable[[ShownUser], list[Point]]:
    return lambda user: _one(getattr(user.figures, name) if user.figures else None)


#: Of each user that is shown; the label ``user`` comes first and is not in ``labels``.
USER = (
    MetricOf("user_bytes_total", COUNTER,
             "What a user has moved: never goes back, whatever becomes of their class.",
             "usage, reports: totals", _moved, ("direction",)),
    MetricOf("user_limit_bytes_per_second", GAUGE,
             "The limit that the kernel has; the node's ceiling for who is unlimited.",
             "status: upload, download", _limits, ("direction",)),
    MetricOf("user_connections", GAUGE, "Live connections.", "status: flows", _figure("flows")),
    MetricOf("user_addresses", GAUGE, "Addresses that they come from; an IPv6 /64 is one.",
             "top: addresses", _figure("addresses")),
    MetricOf("user_utilization_ratio", GAUGE,
             "How full the fuller direction is just now: 0 to 1, a burst may be above.",
             "top: full", _figure("share")),
    MetricOf("user_dropped_packets_total", COUNTER,
             "Packets that the class dropped: how TCP is told of the limit.", "status: drops",
             _figure("drops")),
)  # fmt: skip
