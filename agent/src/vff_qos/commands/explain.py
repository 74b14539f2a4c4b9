"""``vff-qos explain EMAIL``: why a user has the limits that they have, and whether they hold."""

from __future__ import annotations

import time
from typing import Any

from ..config import drop_ins_of, read_file
from ..core.document import Document
from ..core.figures import DIRECTIONS, Moment, penalty
from ..core.health.holding import holds
from ..core.htb import (
    CEIL_MINOR,
    MINOR_MASK,
    OURS_MASK,
    ClassState,
    HtbClass,
    format_classid,
    same_class,
    sent_of,
)
from ..core.owners import Owner
from ..core.policy.barred import read_barred
from ..core.policy.model import Limits, Policy
from ..core.policy.overrides import Override
from ..core.policy.terms import EVICT, REFUSE
from ..core.policy.usage import Level, Usage, levels
from ..core.settings import Settings
from ..core.units import format_duration, format_rate, format_size
from ..errors import ConfigError, Refused
from ..kernel.devices import shaping_devices
from ..kernel.packed.conntrack import Conntrack
from ..name_hashing import people_of
from ..render import describe_limits, describe_override, limit, local_time, place_name, value
from ..runfile import read_last_named
from ..shaping import Classes
from ..state import BARRED, STATIC_MINORS, State
from .flows import RESTRICTED_UNTIL, flows_of, render_flow, render_unsaid, restricted_why
from .node import Node

#: Rates are measured over so long, in seconds; so many flows are shown.
_MEASURE_S, _FLOWS = 0.3, 20


def read_explanation(node: Node, email: str, deep: bool = True) -> dict[str, Any]:
    """Everything ``explain`` shows, as JSON; ``deep`` as for `said.look_up`.

    Raises ConfigError, KernelRefused, StateError.
    """
    settings, policy, state = node.settings_in_force, node.policy_in_force, node.state
    asked, email = email, node.name_of(email)
    try:
        devices = shaping_devices(settings)
    except Refused as error:
        trouble: str | None = f"not set up: {error}"
        devices = None
    else:
        trouble = None
    classes = Classes(settings, policy, node.tc, devices or (0, 0))
    overrides = state.overrides()
    classes.set_overrides(overrides)
    owners = state.owners()
    have: tuple[dict[int, ClassState], dict[int, ClassState]] = ({}, {})
    if devices:
        have = classes.kernel()
        classes.load(owners, set(have[0]) & set(have[1]))
    rule, limits = policy.rule(email), classes.limits_of(email)
    now = time.time()
    in_force = classes.overrides.in_force(email, now)
    deciding = [override for override, _layer in in_force]
    owner = next((o for o in owners if o.key == email), None)
    static = frozenset(state.get_value(STATIC_MINORS) or ())
    flows = flows_of(owner, owners, settings, deep, static) if owner else []
    restricted = any(flow["restricted"] for flow in flows)
    return {
        "email": email,
        "asked": asked if asked in node.asked else None,
        "identities": sorted(i for i, person in people_of(state).items() if person == email),
        "warnings": node.warnings,
        "trouble": trouble,
        "suspended": state.get_value("suspended") is not None,
        "decided_by": "override" if in_force else rule.kind,
        "plans": [str(layer["plan"]) for _override, layer in in_force if "plan" in layer],
        "rule": {"kind": rule.kind, "name": rule.name, "plan": policy.plan(email)},
        "overrides": [
            {**o._asdict(), "in_force": o in deciding} for o in overrides if o.email == email
        ],
        "layers": [
            {"name": name, "where": _where(node, policy, email, name), "gives": layer}
            for name, layer in reversed(policy.layers(email))
        ],
        "usage": [level._asdict() for level in _usage(policy, state, email, now)],
        "limits": limits._asdict(),
        "leaf": limits.leaf or settings.leaf,
        "ceil_bps": settings.node_ceil_bps,
        "class": _class(settings, classes, owner, have) if owner else None,
        "named_s": read_last_named(node.paths.run_dir, owner.minor) if owner else None,
        "flows": flows,
        "devices": sorted({flow["place"] for flow in flows if not flow["restricted"]}),
        "cut_from": [
            {"place": place_name(one.packed), "until": one.until, "who": one.who}
            for one in read_barred(state.get_value(BARRED), now)
            if one.email == email
        ],
        "holding": _holding(node, settings, owner, devices, deciding, restricted),
        "wanted": _both(classes.params_of(limits)),
    }


def _usage(policy: Policy, state: State, email: str, now_s: float) -> list[Level]:
    """How far a user was with the plan's rules when the agent last saved it, within 5 min."""
    terms = policy.terms_of(email)
    saved = [Usage.from_json(terms, data) for *_counters, data in state.usage(email)]
    return levels(saved[0] if saved else Usage(terms), now_s)


def _where(node: Node, policy: Policy, email: str, name: str) -> str:
    """File and line of a layer: the policy itself does not remember them."""
    if node.policy_is_kept:
        return "the last good policy"
    try:
        return _find(node, policy, email, name)
    except ConfigError as error:  # somebody has changed it since it was read
        return str(error)


def _find(node: Node, policy: Policy, email: str, name: str) -> str:
    paths = node.paths
    kind, _, rest = name.partition(" ")
    if kind == "user":
        for path in (*reversed(drop_ins_of(paths.policy_dir)), paths.policy):
            doc = Document(read_file(path), path)
            # The file has the email, whatever the user is called here.
            for written in doc.data.get("users", {}):
                if email in node.names.all_of(written):
                    return f"{path}:{doc.line(('users', written))}"
    key: tuple[str, ...] = {"plan": ("plans", rest)}.get(kind, (kind,))
    if kind == "pattern":
        index = next(i for i, pattern in enumerate(policy.patterns) if pattern.glob == rest)
        key = ("match", str(index))
    line = Document(read_file(paths.policy), paths.policy).line(key)
    return f"{paths.policy}:{line}" if line else "built in"


def _class(
    settings: Settings,
    classes: Classes,
    owner: Owner,
    have: tuple[dict[int, ClassState], dict[int, ClassState]],
) -> dict[str, Any]:
    mark = settings.layout.mark(owner.minor)
    conntrack = Conntrack()
    flows = len(conntrack.dump_marks(mark, OURS_MASK | MINOR_MASK))
    conntrack.close()
    found: dict[str, Any] = {
        "classid": format_classid(mark),
        "mark": f"{mark:#x}",
        "state": owner.state,
        "flows": flows,
    }
    for direction, states, want in zip(DIRECTIONS, have, classes.params(owner), strict=True):
        state = states.get(owner.minor)
        found[direction] = state and {
            **state.params._asdict(),
            "as_wanted": same_class(state.params, want),
            "sent_bytes": state.sent_bytes,
            "sent_packets": state.sent_packets,
            "drops": state.drops,
            "backlog_bytes": state.backlog_bytes,
        }
    return found


def _holding(
    node: Node,
    settings: Settings,
    owner: Owner | None,
    devices: tuple[int, int] | None,
    deciding: list[Override],
    restricted: bool,
) -> dict[str, Any]:
    """What limits the user at this moment, in each direction."""
    if owner is None or devices is None:
        return {}
    why = penalty(deciding)
    # The classes were read some time ago; only what passes from now on is of this moment.
    up, down = (node.tc.sent_bytes(index, *settings.layout) for index in devices)
    start = time.monotonic()
    time.sleep(_MEASURE_S)
    classes = [node.tc.classes(index, *settings.layout) for index in devices]
    seconds = time.monotonic() - start
    after_up, after_down = map(sent_of, classes)
    moment = Moment(
        settings.major,
        (classes[0], classes[1]),
        (up, down),
        (after_up, after_down),
        seconds,
        trees=settings.trees,
    )
    result = {}
    for direction, name in enumerate(DIRECTIONS):
        user, whole = (moment.passing(direction, m) for m in (owner.minor, CEIL_MINOR))
        if user is None or whole is None:
            continue
        held = holds(user, whole, why, restricted)
        result[name] = {
            "rate_bps": user.rate_bps,
            "by": held.text,
            "kind": held.kind,
            "queued_bytes": user.backlog_bytes,
            "delay_ms": round(user.delay_s * 1e3, 1),
        }
    return result


def _both(params: tuple[HtbClass, HtbClass]) -> dict[str, dict[str, int]]:
    return {name: one._asdict() for name, one in zip(DIRECTIONS, params, strict=True)}


def render(found: dict[str, Any]) -> str:
    """The same for people."""
    now = time.time()
    limits = describe_limits(Limits(**found["limits"]))
    lines = [f"{found['email']}: {limits}, weight {found['limits']['weight']}, {found['leaf']}"]
    if found["identities"]:
        lines.append(f"one with: {', '.join(found['identities'])}")
    if found["trouble"]:
        lines.append(f"TROUBLE: {found['trouble']}")
    if found["suspended"]:
        lines.append("SUSPENDED: nobody is limited ('vff-qos enable' ends it)")
    lines.append(f"decided by: {_decision(found)}")
    lines += [*_render_connections(found), *_render_devices(found), *_render_barred(found)]
    lines.append("strongest first:")
    for override in found["overrides"]:
        data = {key: value for key, value in override.items() if key != "in_force"}
        mark = "" if override["in_force"] else " (not in force)"
        lines.append(f"  override   {describe_override(Override(**data), now)}{mark}")
    for layer in found["layers"]:
        gives = ", ".join(f"{key} {value(key, given)}" for key, given in layer["gives"].items())
        lines.append(f"  {layer['name']:<10} {layer['where']}: {gives or 'nothing'}")
    for level in found["usage"]:
        penalty = f", penalty until {local_time(level['until'])}" if level["until"] else ""
        lines.append(f"{level['rule']}: {level['used']} ({level['share']:.0%}){penalty}")
    lines += _render_class(found)
    if found["named_s"]:
        ago = format_duration(max(1, now - found["named_s"]))
        lines.append(f"last named: {local_time(found['named_s'])} ({ago} ago)")
    for direction, holding in found["holding"].items():
        lines.append(
            f"now {direction} {holding['rate_bps'] / 1e6:.3g} Mbit/s, "
            f"{holding['delay_ms']:g} ms in the queue, held by {holding['by']}"
        )
    return "\n".join([*lines, *_render_flows(found["flows"])])


def _render_connections(found: dict[str, Any]) -> list[str]:
    """How many connections there may be; what the kernel lists also counts those just closed."""
    limits = Limits(**found["limits"])
    if limits.connections is None:
        return []
    ends = "those silent for longest end" if limits.over_connections == EVICT else "new ones end"
    have = found["class"]["flows"] if found["class"] else 0
    return [
        f"connections: {limits.connections} at most, of more {ends}; the kernel lists {have}, "
        "those just closed included"
    ]


def _render_barred(found: dict[str, Any]) -> list[str]:
    return [
        f"cut off from {one['place']} by {one['who']}, "
        + ("until reset" if one["until"] is None else f"until {local_time(one['until'])}")
        for one in found["cut_from"]
    ]


def _render_devices(found: dict[str, Any]) -> list[str]:
    limits = Limits(**found["limits"])
    if limits.devices is None:
        return []
    over = "refused" if limits.over == REFUSE else "restricted"
    return [
        f"devices: {limits.devices} at most, now {len(found['devices'])}; another one is {over}"
        + (f"; from {', '.join(found['devices'][:_FLOWS])}" if found["devices"] else "")
    ]


def _render_flows(flows: list[dict[str, Any]]) -> list[str]:
    own = [flow for flow in flows if not flow["restricted"]]
    restricted = [flow for flow in flows if flow["restricted"] and not flow["device"]]
    slow = [flow for flow in flows if flow["restricted"] and flow["device"]]
    lines = [f"  {render_flow(flow)}" for flow in own[:_FLOWS]]
    if len(own) > _FLOWS:
        lines.append(f"  and {len(own) - _FLOWS} more (--json has all)")
    if restricted:
        more = f"{len(restricted)} more from the same addresses are restricted"
        lines.append(f"{more}, each {RESTRICTED_UNTIL}:")
        for flow in restricted[:_FLOWS]:
            lines += [f"  {render_flow(flow)}", f"    {restricted_why(flow)}"]
    if slow:
        lines.append(f"{len(slow)} more are restricted, of a device too many:")
        lines += [f"  {render_flow(flow)}" for flow in slow[:_FLOWS]]
    return lines + render_unsaid(flows)


def _decision(found: dict[str, Any]) -> str:
    """What decides, and the plan that it takes the limits from."""
    rule = found["rule"]
    name = "default" if rule["kind"] == "default" else f"{rule['kind']} {rule['name']}"
    if found["plans"]:
        return f"a temporary override, plan {', '.join(found['plans'])}"
    below = name + (f", plan {rule['plan']}" if rule["plan"] else "")
    return f"a temporary override, above {below}" if found["decided_by"] == "override" else below


def _render_class(found: dict[str, Any]) -> list[str]:
    owned, ceil_bps = found["class"], found["ceil_bps"]
    if owned is None:
        lines = ["class: none yet; one is made with the user's first connection"]
    else:
        lines = [f"class {owned['classid']} ({owned['state']}), {owned['flows']} flows marked"]
    for direction in DIRECTIONS:
        wanted = found["wanted"][direction]
        lines.append(f"  {direction:<9} {_numbers(wanted, ceil_bps)}")
        if owned is None:
            continue
        has = owned[direction]
        if has is None:
            lines.append(f"  {'':<9} not in the kernel; it is made with the next connection")
            continue
        if not has["as_wanted"]:
            lines.append(f"  {'in kernel':<9} {_numbers(has, ceil_bps)}  DIFFERS")
        lines.append(
            f"  {'':<9} {has['sent_bytes'] / 1e6:.1f} MB in {has['sent_packets']} packets sent, "
            f"{has['drops']} dropped, {has['backlog_bytes']} bytes queued"
        )
    return lines


def _numbers(params: dict[str, int], ceil_bps: int) -> str:
    return (
        f"limit {limit(params['ceil_bps'], ceil_bps)}, guaranteed "
        f"{format_rate(params['rate_bps'])}, burst {format_size(params['cburst_bytes'])}, "
        f"quantum {params['quantum_bytes']}"
    )
