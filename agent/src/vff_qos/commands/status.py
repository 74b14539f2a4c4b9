"""``vff-qos status``: what is in force, read from the kernel and the state, not from memory."""

from __future__ import annotations

import time
from operator import getitem
from typing import Any

from .. import __version__
from ..core.figures import (
    DIRECTIONS,
    DOWNLOAD,
    SORTS,
    UPLOAD,
    Moment,
    natural,
    ordered,
    select,
)
from ..core.health import xray
from ..core.health.findings import EXIT_CODES, OK, Finding, verdict, worst_first
from ..core.health.rules import judge
from ..core.htb import CEIL_MINOR, UNCLASSIFIED_MINOR
from ..core.names import PLAIN
from ..core.owners import ACTIVE, RESTRICTED_KEY, SPARE
from ..core.policy.overrides import OPERATOR, Override
from ..core.units import format_duration
from ..disabled import read_record
from ..kernel.devices import wan_link
from ..name_hashing import mode_of
from ..render import describe_override, display_name, limit, local_time, measured
from ..state import KERNEL_RECORD
from .engines import read_engines
from .facts import Seen, look
from .node import Node

__all__ = ["SORTS", "exit_code", "read_status", "render"]

#: Rates are measured over so long at least, in seconds.
MEASURE_S = 0.2
#: Rows of users without ``--all``, and orders.
_TOP, _ORDERS = 10, 5


def read_status(
    node: Node, patterns: list[str] | None = None, engine: bool = False
) -> dict[str, Any]:
    """Everything ``status`` shows, as JSON; of all users, or those that match a pattern.

    ``engine``: with what the engine's own configuration keeps from holding.  Raises KernelRefused.
    """
    seen = look(node)
    findings = judge(seen.facts)
    if engine and seen.settings is not None:
        told = xray.examine(read_engines(seen.settings), seen.settings)
        findings = worst_first([*findings, *(f for f in told if f.level != OK)])
    moment = read_again(node, seen, MEASURE_S) if seen.is_set_up else None
    status = describe(node, seen, findings, moment)
    if moment is not None:
        names = sorted(((o, display_name(o.key)) for o in seen.owners), key=lambda o: natural(o[1]))
        status["users"] = [one.to_json() for one in select(moment, names, patterns or [])]
    return status


def describe(
    node: Node, seen: Seen, findings: list[Finding], moment: Moment | None
) -> dict[str, Any]:
    """A look at a node as JSON, without its users; ``moment``: its rates, None if not set up."""
    facts, report, settings = seen.facts, seen.report, seen.settings
    level, reason = verdict(findings)
    record = read_record(node.paths)
    status: dict[str, Any] = {
        "verdict": level,
        "reason": reason,
        "findings": [vars(finding) for finding in findings],
        "version": __version__,
        "time": facts.now_s,
        "warnings": node.warnings,
        "names": PLAIN,
        "disabled": record._asdict() if record else None,
        "suspended": facts.suspended,
        "state": facts.state,
        "follower": report.to_json() if report else None,
        "collected": node.state.get_value("collected") if "state" in node.__dict__ else None,
        "tcp_memory": seen.tcp_memory._asdict() if seen.tcp_memory else None,
        "conntrack": {"count": facts.conntrack_count, "max": facts.conntrack_max},
        "users": [],
        "overrides": [override._asdict() for override in seen.overrides],
    }
    if "state" in node.__dict__:
        status["names"] = mode_of(node.state)
    if settings is None or moment is None:
        return status
    status["wan"], status["ifb"] = wan_link(settings).name, settings.ifb
    status["ceil_bps"] = settings.node_ceil_bps
    status["trees"], status["trees_why"] = settings.trees, _trees_why(node)
    status["time"] = time.time()
    status["devices"] = devices_of(moment)
    owners = seen.owners
    status["restricted"] = _restricted(seen)
    waiting = [owner for owner in owners if owner.state != ACTIVE]
    spare = [owner.minor for owner in waiting if owner.key.startswith(SPARE)]
    status["parked"] = len(waiting) - len(spare)
    # Their classes are made one after the other.
    status["spare"] = len(seen.up.keys() & seen.down.keys() & set(spare))
    return status


def _trees_why(node: Node) -> str:
    """Why there are so many trees; empty where nobody asked for more than one."""
    return str((node.any_state.get_value(KERNEL_RECORD) or {}).get("trees_why", ""))


def read_again(node: Node, seen: Seen, after_s: float) -> Moment:
    """The figures of a moment: counters are read anew ``after_s`` seconds after the first look."""
    assert seen.devices is not None and seen.settings is not None
    time.sleep(max(0.0, seen.counted_s + after_s - time.monotonic()))
    layout = seen.settings.layout
    up, down = (node.tc.sent_bytes(index, *layout) for index in seen.devices)
    moment = seen.moment(time.time())
    moment.after, moment.seconds = (up, down), time.monotonic() - seen.counted_s
    return moment


def devices_of(moment: Moment) -> dict[str, Any]:
    """What passes the node, and what of it is nobody's, by direction."""
    found = {}
    for direction in (UPLOAD, DOWNLOAD):
        classes = moment.classes[direction]
        whole, nobodys = classes.get(CEIL_MINOR), classes.get(UNCLASSIFIED_MINOR)
        found[DIRECTIONS[direction]] = {
            "rate_bps": moment.rate_bps(direction, CEIL_MINOR),
            "unclassified_bps": moment.rate_bps(direction, UNCLASSIFIED_MINOR),
            "bytes": whole.sent_bytes if whole else 0,
            "unclassified_bytes": nobodys.sent_bytes if nobodys else 0,
        }
    return found


def _restricted(seen: Seen) -> dict[str, int]:
    """Addresses with a restricted class, and their live flows."""
    owners = [o for o in seen.owners if o.state == ACTIVE and o.key.startswith(RESTRICTED_KEY)]
    return {
        "addresses": len(owners),
        "flows": sum(seen.flows.get(owner.minor, 0) for owner in owners),
    }


def exit_code(status: dict[str, Any]) -> int:
    """0 well, 1 degraded, 2 not working."""
    return EXIT_CODES[status["verdict"]]


def render(
    status: dict[str, Any], every: bool = False, sort: str = "rate", filtered: bool = False
) -> str:
    """The same for people: one screen, unless ``every`` user is asked for."""
    lines = [*_render_findings(status), *_render_orders(status, every)]
    lines += [*_render_follower(status), *_render_node(status)]
    return "\n".join([*lines, *_render_users(status, every or filtered, sort)])


def _render_findings(status: dict[str, Any]) -> list[str]:
    lines = [f"{OK}: nothing is wrong"] if status["verdict"] == OK else []
    for finding in status["findings"]:
        if finding["level"] == OK:
            lines.append(finding["sentence"])
            continue
        lines.append(f"{finding['level']}: {finding['sentence']}")
        lines += [f"  seen: {seen}" for seen in finding["evidence"][:3]]
        if finding["remedy"]:
            lines.append(f"  do: {finding['remedy']}")
    return lines


def _render_orders(status: dict[str, Any], every: bool) -> list[str]:
    """What is in force although the policy says otherwise."""
    orders = [Override(**override) for override in status["overrides"]]
    # A person's first: of penalties there may be many.
    orders.sort(key=lambda order: (order.origin != OPERATOR, natural(order.email)))
    shown = orders if every else orders[:_ORDERS]
    now = status["time"]
    lines = [f"override {describe_override(order, now)}" for order in shown]
    if len(orders) > len(shown):
        penalties = sum(order.origin != OPERATOR for order in orders)
        lines.append(
            f"overrides: {len(orders)} in all, {penalties} of them penalties (--all shows them)"
        )
    return lines


def _render_follower(status: dict[str, Any]) -> list[str]:
    follower = status["follower"]
    if follower is None:
        return ["follower: not running"]
    log = follower["log"]
    since = f" since {local_time(follower['started'])}" if follower["started"] else ""
    lines = [
        f"follower {follower['version']}: pid {follower['pid']}{since}",
        *(
            line
            for source in follower["sources"]
            for line in _render_source(source, len(follower["sources"]) > 1, status["time"])
        ),
        f"claims: {log['lines']} lines, {follower['marked']} marks set, not set: "
        f"{_not_set(follower)}",
        f"connections: {follower['flows_known']} known by {follower['flows_known_by']}, "
        f"{follower['flows_claimed']} are somebody's, {follower['flows_lost_events']} losses of "
        "events",
        *_moved(follower),
        f"trust: {follower['restricted']} restricted, {follower['conflicts']} conflicts, "
        f"{follower['ignored_tainted']} distrusted claims ignored; {follower['repairs']} repairs"
        + _healed(follower["repair"]),
    ]
    if "static_identities" in follower:
        lines.append(
            f"services and networks: {follower['static_in_force']} of "
            f"{follower['static_identities']} in force"
        )
    if "people" in follower:
        lines.append(
            f"people: {follower['people']}, joined of {follower['people_identities']} identities"
        )
    if "connections_evicted" in follower:
        lines.append(
            f"too many connections: {follower['connections_evicted']} evicted, "
            f"{follower['connections_refused']} refused; too many devices: "
            f"{follower['devices_restricted']} times restricted, "
            f"{follower['devices_refused']} refused"
        )
    if "early_addresses" in follower:
        lines.append(
            f"early shaping: {follower['early_addresses']} addresses, "
            f"{follower['early_confirmed']} flows confirmed, "
            f"{follower['early_corrected']} corrected, {follower['early_expired']} expired"
        )
    return lines


def _render_source(source: dict[str, Any], is_named: bool, now_s: float) -> list[str]:
    """How one source is; with its name, if there are several."""
    log = source["log"]
    told = "cannot be forged" if source["trust"] == "told" else "text, which can be forged"
    called = f"source {source['name']}" if is_named else "source"
    if source["waiting"] and is_named:
        lines = [f"{called}: waiting: {source['waiting']}"]
    else:
        lines = [
            f"{called}: {source['origin']} ({told}), {source['lines_per_s']:g} lines/s, "
            f"{source['lag_s']:g} s behind, last claim {_ago(source['last_claim_s'], now_s)}"
        ]
    if "connections" in log:
        refused = ", ".join(f"{n} {why}" for why, n in log["refused"].items()) or "none"
        name = f"{source['name'] if is_named else source['kind']}: "
        lines.append(f"{name}{log['connections']} connections, refused: {refused}")
    return lines


#: Names of the reasons for which a claim sets no mark, by counter.
_REASONS = {
    "no_flow": "flow not found",
    "no_port": "address from a header with port 0",
    "foreign_mark": "foreign mark",
    "exhausted": "no class left",
    "stale": "older than its flow",
}


def _moved(follower: dict[str, Any]) -> list[str]:
    found = [follower[key] for key in ("followed", "handed_on", "ambiguous_udp")]
    if not any(found):
        return []
    by_id, by_address, not_ = found
    return [
        f"UDP that moved: {by_id} followed by QUIC ID, {by_address} by address, {not_} not: "
        "several users there"
    ]


def _not_set(follower: dict[str, Any]) -> str:
    counts = {**follower["log"], **{k: v for k, v in follower.items() if k in _REASONS}}
    found = [f"{counts[name]} {text}" for name, text in _REASONS.items() if counts.get(name)]
    return ", ".join(found) or "none"


def _healed(repair: dict[str, Any]) -> str:
    if repair["healed_s"] is None:
        return ""
    return f", the last {local_time(repair['healed_s'])}: {'; '.join(repair['changes'][:2])}"


def _ago(when_s: float | None, now_s: float) -> str:
    if when_s is None:
        return "never since the start"
    return f"{format_duration(max(1, round(now_s - when_s)))} ago"


def _render_node(status: dict[str, Any]) -> list[str]:
    if "wan" not in status:
        return []
    devices, restricted = status["devices"], status["restricted"]
    up, down = (devices[direction] for direction in DIRECTIONS)
    lines = [
        f"download on {status['wan']} {measured(down['rate_bps'])}, upload on {status['ifb']} "
        f"{measured(up['rate_bps'])}, {status['parked']} classes parked, {status['spare']} made "
        "in advance",
        f"restricted: {restricted['flows']} connections of {restricted['addresses']} addresses",
    ]
    if why := status["trees_why"]:
        lines.append(f"trees: {status['trees']} in each direction, because {why}")
    if collected := status["collected"]:
        lines.append(f"collected: {local_time(collected['when'])}, {collected['actions']} actions")
    return lines


def _render_users(status: dict[str, Any], every: bool, sort: str) -> list[str]:
    users = status["users"]
    if not users:
        return ["users: none has a class"] if "wan" in status else []
    ceil_bps = status["ceil_bps"]
    users = ordered(users, sort, getitem)
    shown = users if every else users[:_TOP]
    active = sum(bool(user["flows"]) for user in users)
    lines = [
        f"users: {len(users)} with a class, {active} with connections"
        + ("" if len(shown) == len(users) else f"; the top {_TOP} by {sort} (--all, --sort):"),
        f"{'user':<32} {'class':<10} {'upload':>9} {'download':>9} {'flows':>6} "
        f"{'up now':>9} {'down now':>9} {'up MB':>9} {'down MB':>9} {'drops':>7}",
    ]
    for user in shown:
        up, down = (_shown(user[f"{name}_bps"], ceil_bps) for name in DIRECTIONS)
        lines.append(
            f"{user['email']:<32} {user['class']:<10} {up:>9} {down:>9} {user['flows']:>6} "
            f"{measured(user['up_rate_bps']):>9} {measured(user['down_rate_bps']):>9} "
            f"{user['up_bytes'] / 1e6:>9.1f} {user['down_bytes'] / 1e6:>9.1f} {user['drops']:>7}"
        )
    return lines


def _shown(rate_bps: int | None, ceil_bps: int) -> str:
    return "no class" if rate_bps is None else limit(rate_bps, ceil_bps)
