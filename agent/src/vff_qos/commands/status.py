"""``vff-qos status``: what is in force, read from the kernel and the state, not from memory."""

from __future__ import annotations

import time
from typing import Any

from ..core.htb import CEIL_MINOR, MINOR_MASK, OURS_MASK, classid, format_classid
from ..core.owners import ACTIVE, SPARE
from ..core.policy.overrides import Override
from ..disabled import read_record
from ..errors import Refused
from ..kernel.devices import shaping_devices, wan_link
from ..kernel.packed.conntrack import Conntrack
from ..kernel.tcpmem import TcpMemory, read_tcp_memory
from ..render import describe_override, display_name, limit
from ..runfile import read_report
from .node import Node

_DIRECTIONS = ("upload", "download")
#: Of users without a class; the rest are a number.
_NAMED = 3


def read_status(node: Node) -> dict[str, Any]:
    """Everything ``status`` shows, as JSON.  Raises KernelRefused, StateError."""
    settings, state = node.settings_in_force, node.state
    report, record = read_report(node.paths.run_dir), read_record(node.paths)
    status: dict[str, Any] = {
        "warnings": node.warnings,
        "disabled": record._asdict() if record else None,
        "suspended": state.get_value("suspended") is not None,
        "state": state.trouble,
        "follower": report.to_json() if report else None,
        "tcp_memory": read_tcp_memory()._asdict(),
        "users": [],
        "overrides": [
            override._asdict()
            for override in state.overrides()
            if not override.ends_by(time.time())
        ],
    }
    try:
        devices = shaping_devices(settings)
        status["wan"], status["ifb"] = wan_link(settings).name, settings.ifb
        status["ceil_bps"] = settings.node_ceil_bps
    except Refused as error:
        status["trouble"] = f"not set up: {error}"
        return status
    conntrack = Conntrack()
    up, down = (node.tc.classes(index, settings.major) for index in devices)
    status["time"] = time.time()
    flows: dict[int, int] = {}
    for entry in conntrack.dump(settings.major << 16, OURS_MASK):
        minor = entry.mark & MINOR_MASK
        flows[minor] = flows.get(minor, 0) + 1
    if CEIL_MINOR not in up or CEIL_MINOR not in down:
        status["trouble"] = "not set up: the HTB trees are missing; run 'vff-qos bootstrap'"
    owners = sorted(state.owners(), key=lambda owner: owner.key)
    for owner in owners:
        if owner.state != ACTIVE:
            continue
        u, d = up.get(owner.minor), down.get(owner.minor)
        status["users"].append(
            {
                "email": display_name(owner.key),
                "class": format_classid(classid(settings.major, owner.minor)),
                "upload_bps": u.params.ceil_bps if u else None,
                "download_bps": d.params.ceil_bps if d else None,
                "flows": flows.get(owner.minor, 0),
                "up_bytes": u.sent_bytes if u else 0,
                "down_bytes": d.sent_bytes if d else 0,
                "drops": (u.drops if u else 0) + (d.drops if d else 0),
            }
        )
    spare = [owner.key.startswith(SPARE) for owner in owners if owner.state != ACTIVE]
    status["parked"], status["spare"] = len(spare) - sum(spare), sum(spare)
    conntrack.close()
    return status


def render(status: dict[str, Any]) -> str:
    """The same for people."""
    lines = _render_trouble(status)
    follower = status["follower"]
    if follower is None:
        lines.append("follower: not running")
    else:
        lines.append(
            f"follower: pid {follower['pid']}, {follower['log']['lines']} lines, "
            f"{follower['marked']} marks set, {follower['no_flow']} flows not found, "
            f"{follower['restricted']} restricted, {follower['conflicts']} conflicts, "
            f"{follower['repairs']} repairs"
        )
        if "early_addresses" in follower:
            lines.append(
                f"early shaping: {follower['early_addresses']} addresses, "
                f"{follower['early_confirmed']} flows confirmed, "
                f"{follower['early_corrected']} corrected, {follower['early_expired']} expired"
            )
    if "wan" in status:
        lines.append(
            f"download on {status['wan']}, upload on {status['ifb']}, "
            f"{status.get('parked', 0)} classes parked, {status.get('spare', 0)} made in advance"
        )
    if status["users"]:
        lines.append(
            f"{'user':<32} {'class':<10} {'upload':>9} {'download':>9} {'flows':>6} "
            f"{'up MB':>9} {'down MB':>9} {'drops':>7}"
        )
    for user in status["users"]:
        up, down = (_shown(user[f"{name}_bps"], status["ceil_bps"]) for name in _DIRECTIONS)
        lines.append(
            f"{user['email']:<32} {user['class']:<10} {up:>9} {down:>9} {user['flows']:>6} "
            f"{user['up_bytes'] / 1e6:>9.1f} {user['down_bytes'] / 1e6:>9.1f} {user['drops']:>7}"
        )
    now = time.time()
    for override in status["overrides"]:
        lines.append(f"override {describe_override(Override(**override), now)}")
    return "\n".join(lines)


def _render_trouble(status: dict[str, Any]) -> list[str]:
    """What a person must know first."""
    lines = []
    if record := status["disabled"]:
        why = f" ({record['why']})" if record["why"] else ""
        lines.append(
            f"DISABLED by {record['who']} at {record['when']}{why}: nobody is limited, also after "
            "a reboot ('vff-qos enable' ends it)"
        )
    elif status["suspended"]:
        lines.append("SUSPENDED: nobody is limited ('vff-qos enable' ends it)")
    if status.get("trouble"):
        lines.append(f"TROUBLE: {status['trouble']}")
    if status["state"]:
        lines.append(f"TROUBLE: {status['state']}")
    lines += [f"TROUBLE: {warning}" for warning in status["warnings"]]
    memory = TcpMemory(**status["tcp_memory"])
    if memory.is_short:
        lines.append(f"TROUBLE: {memory}")
    without = [u for u in status["users"] if None in (u["upload_bps"], u["download_bps"])]
    if busy := [user["email"] for user in without if user["flows"]]:
        rest = f" and {len(busy) - _NAMED} more" if len(busy) > _NAMED else ""
        lines.append(
            "TROUBLE: without a class in the kernel, so without a limit, until the agent makes it "
            f"anew: {', '.join(busy[:_NAMED])}{rest}"
        )
    elif without:
        lines.append(f"no class: {len(without)} users get theirs with their next connection")
    return lines


def _shown(rate_bps: int | None, ceil_bps: int) -> str:
    return "no class" if rate_bps is None else limit(rate_bps, ceil_bps)
