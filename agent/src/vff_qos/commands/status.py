"""``vff-qos status``: what is in force, read from the kernel and the state, not from memory."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ..config import Paths
from ..core.gc_plan import display_name
from ..core.htb import CEIL_MINOR, MINOR_MASK, OURS_MASK, classid, format_classid
from ..core.owners import ACTIVE, SPARE
from ..core.policy.overrides import Override
from ..core.rates import format_rate
from ..core.settings import Settings
from ..errors import Refused
from ..kernel.devices import shaping_devices, wan_link
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.tc import Tc
from ..kernel.tcpmem import TcpMemory, read_tcp_memory
from ..state import State
from .overrides import describe_override

#: The follower writes its counters every 5 s.
_STALE_S = 15.0


def read_status(settings: Settings, state: State, paths: Paths) -> dict[str, Any]:
    """Everything ``status`` shows, as JSON.  Raises KernelRefused, StateError."""
    status: dict[str, Any] = {
        "suspended": state.get_value("suspended") is not None,
        "follower": running_follower(paths.run_dir),
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
    except Refused as error:
        status["trouble"] = f"not set up: {error}"
        return status
    tc, conntrack = Tc(), Conntrack()
    up, down = (tc.classes(index, settings.major) for index in devices)
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
    tc.close()
    conntrack.close()
    return status


def running_follower(run_dir: str) -> dict[str, Any] | None:
    """The follower's counters; None when it does not run."""
    try:
        with open(os.path.join(run_dir, "follow.json"), encoding="utf-8") as file:
            counters: dict[str, Any] = json.load(file)
        if time.time() - counters["written"] > _STALE_S:
            return None
        with open(f"/proc/{counters['pid']}/cmdline", "rb") as file:
            return counters if b"\0follow\0" in file.read() else None
    except (FileNotFoundError, ProcessLookupError):
        return None


def render(status: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    if status["suspended"]:
        lines.append("SUSPENDED: nobody is limited ('vff-qos bootstrap' ends it)")
    if status.get("trouble"):
        lines.append(f"TROUBLE: {status['trouble']}")
    memory = TcpMemory(**status["tcp_memory"])
    if memory.is_short:
        lines.append(f"TROUBLE: {memory}")
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
        lines.append(
            f"{user['email']:<32} {user['class']:<10} {_rate(user['upload_bps']):>9} "
            f"{_rate(user['download_bps']):>9} {user['flows']:>6} {user['up_bytes'] / 1e6:>9.1f} "
            f"{user['down_bytes'] / 1e6:>9.1f} {user['drops']:>7}"
        )
    now = time.time()
    for override in status["overrides"]:
        lines.append(f"override {describe_override(Override(**override), now)}")
    return "\n".join(lines)


def _rate(rate_bps: int | None) -> str:
    return "-" if rate_bps is None else format_rate(rate_bps)
