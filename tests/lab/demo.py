"""make demo: a node, users on several engines, the real playbook, and what each of them gets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from . import engine, operate
from .hysteria import Hysteria
from .labnode import Lab
from .machine import Load
from .measure import Measurement, Report
from .node import Node
from .progress import say, step
from .snapshot import difference, snapshot
from .users import (
    DEMO_USERS,
    DIRECTIONS,
    HOP,
    HYSTERIA_HOOK,
    MBIT,
    Direction,
    User,
    role_variables,
)

OUT = operate.ROOT / "build" / "demo"

MAX_ERROR_PCT = 5.0
MAX_KILL_S = 1.0
_MEASURE_S = 30.0
#: Emulation is slow until it has translated what runs.
_WARMUP_S = 15.0
#: So often it is measured again if this machine was starved.
_AGAIN = 2
_SAMPLE_S = 0.25
_LONG_S = 1200.0  # ended by hand
#: In the kill switch run the users' access lines have this many times their limit: enough to see
#: it lifted.
_LINE = 1.5
_LIFTED, _HELD = 1.12, 1.08
_STAYS_SAMPLES = 8
#: What a user comes by, for people.
_ENGINES = {"xray": "Xray", "sing-box": "sing-box", "hysteria": "Hysteria", "port": "own port"}

#: Runs a make target: its name, what for, what it must print.
Player = Callable[..., None]


def demo() -> bool:
    """Run everything; returns whether all went as it should."""
    OUT.mkdir(parents=True, exist_ok=True)
    load = Load()
    with Lab("demo") as lab:
        lab.start_engine(DEMO_USERS)
        before = snapshot(lab.node)
        play = _player(lab.node)
        play("qos", "deploying with the playbook")
        rows = []
        reports: dict[str, Report] = {}
        starved: list[dict[str, Any]] = []
        with _hysteria(lab):
            for direction in DIRECTIONS:
                reports[direction] = _measure(lab, direction, starved)
                rows += [_row(m) for m in reports[direction].measurements]
        _print_users(rows)
        change = _live_change(lab)
        play("qos", "deploying again: nothing may change", "changed=0 ")
        switch = _kill_switch(lab, play, starved)
        play("qos-absent", "removing everything")
        residue = difference(before, snapshot(lab.node))
    result = {
        "users": rows,
        "live_change": change["figures"],
        **switch["figures"],
        "residue": residue,
        "starved_runs": starved,
        "stolen_pct": round(load.stolen_pct(), 1),
    }
    (OUT / "report.json").write_text(json.dumps(result, indent=1))
    _plot(reports, change, switch)
    return _verdict(result)


def _player(node: Node) -> Player:
    """A function that runs a make target against the node."""
    inventory = operate.inventory(node, OUT / "inventory", role_variables(DEMO_USERS))

    def play(target: str, what: str, expect: str = "") -> None:
        printed = operate.make(target, inventory, what=what, expect=expect)
        (OUT / f"{target}.log").write_text(printed)
        say(next(line for line in printed.splitlines() if "ok=" in line))

    return play


@contextmanager
def _hysteria(lab: Lab) -> Iterator[None]:
    """Users of Hysteria, logged in."""
    (device,) = (device for device in lab.devices if device.user.engine == "hysteria")
    local = {device.target_port: device.target_port, device.echo_port: engine.ECHO_PORT}
    with Hysteria(lab, HYSTERIA_HOOK, device.user.server_port, HOP) as server:
        server.client(device.user.password, device.uplink, local).wait()
        yield


def _measured(direction: Direction) -> list[User]:
    """Who is measured.  What a user uploads over QUIC cannot be told from outside: sockets do not
    say what has arrived of it."""
    return [user for user in DEMO_USERS if user.engine != "hysteria" or direction == "download"]


def _measure(lab: Lab, direction: Direction, starved: list[dict[str, Any]]) -> Report:
    """What everybody gets in a direction.

    If somebody is off and this machine's processors were away or all busy meanwhile, that is
    noted in `starved`, and measured again, twice at most.
    """
    for _try in range(1 + _AGAIN):
        load = Load()
        report = lab.measure(direction, _MEASURE_S, users=_measured(direction), warmup_s=_WARMUP_S)
        starving, shares = load.starved(), load.shares()
        off = {
            m.user.email: round(m.error_pct, 1)
            for m in report.measurements
            if m.error_pct is not None and abs(m.error_pct) > MAX_ERROR_PCT
        }
        if not off or not starving:
            break
        users = ", ".join(f"{email} {error_pct:+.1f} %" for email, error_pct in off.items())
        say(f"{direction} on a starved machine ({shares}): {users}")
        starved.append({"direction": direction, "off_pct": off, **shares})
    return report


def _row(m: Measurement) -> dict[str, Any]:
    return {
        "email": m.user.email,
        "engine": _ENGINES[m.user.engine],
        "protocol": m.user.protocol + ("/IPv6" if m.user.ipv6 else "") + "/UDP" * m.user.udp,
        "direction": m.direction,
        "limit_bps": m.limit_bps,
        "measured_bps": round(m.measured_bps),
        "error_pct": None if m.error_pct is None else round(m.error_pct, 2),
        "flows": m.flows,
        "ping_ms": round(m.ping_ms, 1),
        "ping_idle_ms": round(m.ping_idle_ms, 1),
        "goodput_bps": round(m.goodput_bps),
    }


def _print_users(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'user':<14} {'engine':<8} {'protocol':<15} {'direction':<9} {'limit':>5} "
          f"{'measured':>8} {'error':>7} {'flows':>5} {'ping idle':>10} {'loaded':>8}")  # fmt: skip
    for row in rows:
        limit = "none" if row["limit_bps"] is None else f"{row['limit_bps'] / MBIT:.1f}"
        error = "" if row["error_pct"] is None else f"{row['error_pct']:+.1f} %"
        print(
            f"{row['email']:<14} {row['engine']:<8} {row['protocol']:<15} {row['direction']:<9} "
            f"{limit:>5} {row['measured_bps'] / MBIT:>8.2f} {error:>7} {row['flows']:>5} "
            f"{row['ping_idle_ms']:>7.1f} ms {row['ping_ms']:>5.1f} ms"
        )
    print("Rates in Mbit/s of Ethernet frames, as HTB counts them.\n", flush=True)


def _live_change(lab: Lab) -> dict[str, Any]:
    """Another limit for one user, and back, by two commands while the same connection goes on."""
    user = DEMO_USERS[0]
    assert user.download
    lowered = user.download // 5
    run = lab.start_traffic("download", _LONG_S, users=[user], interval_s=_SAMPLE_S, idle_s=0.5)
    with step(f"changing the limit of {user.email} under a running transfer"):
        time.sleep(18)
        marks = [time.time()]
        for command in (
            f"vff-qos limit {user.email} --download {lowered // MBIT}mbit --for 1h --reason demo",
            f"vff-qos reset {user.email}",
        ):
            lab.node.ssh(command)
            marks.append(time.time())
            time.sleep(12)
            marks.append(time.time())
        report = run.finish()
    series = report.measurements[0].series
    asked, limited, reset, back, end = (mark - report.clock for mark in marks)
    figures = []
    print(f"\n{user.email + ', one connection':<32} limit  measured")
    for what, limit, start, stop in (
        ("policy", user.download, 0.0, asked),
        ("vff-qos limit", lowered, limited + 1, reset),
        ("vff-qos reset", user.download, back + 1, end),
    ):
        rates = [rate for at, rate in series if start + _SAMPLE_S < at <= stop]
        mean = sum(rates) / len(rates)
        error_pct = 100 * (mean - limit) / limit
        figures.append(
            {"after": what, "limit_bps": limit, "measured_bps": round(mean)}
            | {"error_pct": round(error_pct, 2)}
        )
        print(f"after {what:<24} {limit / MBIT:7.1f} {mean / MBIT:9.2f} {error_pct:+6.1f} %")
    print(flush=True)
    events = {"typed: vff-qos limit": marks[0], "typed: vff-qos reset": marks[2]}
    return {"report": report, "events": events, "figures": figures, "lowered": lowered}


def _kill_switch(lab: Lab, play: Player, starved: list[dict[str, Any]]) -> dict[str, Any]:
    """What the kill switch does and how fast; what a starved machine made slow is noted and
    measured again, as in `_measure`."""
    for _try in range(1 + _AGAIN):
        load = Load()
        switch = _throw_and_release(lab, play)
        took_s = {name: switch["figures"][f"{name}_s"] for name in ("kill_switch", "restore")}
        if max(took_s.values()) <= MAX_KILL_S or not load.starved():
            break
        say(f"kill switch on a starved machine ({load.shares()}): {took_s}")
        starved.append({**took_s, **load.shares()})
    return switch


def _throw_and_release(lab: Lab, play: Player) -> dict[str, Any]:
    """Traffic all the while: limited, then disabled, then limited again."""
    # In one connection from each device: ansible needs its part of the emulated node's processor.
    users = [
        replace(user, flows=1)
        for user in DEMO_USERS
        if user.download is not None and user.engine != "hysteria"
    ]
    say(f"kill switch: {len(users)} users whose lines have {_LINE} times their limit")
    run = lab.start_traffic(
        "download", _LONG_S, users=users, interval_s=_SAMPLE_S, idle_s=0.5, line=_LINE
    )
    time.sleep(15)
    play("qos-disable", "throwing the kill switch")
    time.sleep(4)
    play("qos", "bringing the limits back")
    time.sleep(4)
    report = run.finish()
    events, before = {}, {}
    for kind in ("suspended", "resumed"):
        events[kind], before[kind] = _event(lab.node, kind)
    figures: dict[str, Any] = {}
    for name, kind in (("kill_switch", "suspended"), ("restore", "resumed")):
        users_s = _settled(report, events[kind], lifted=kind == "suspended")
        figures[f"{name}_s"] = max(users_s.values())
        figures[f"{name}_users_s"] = users_s
        figures[f"{name}_start_s"] = round(before[kind], 2)
    return {"report": report, "events": events, "figures": figures}


def _event(node: Node, kind: str) -> tuple[float, float]:
    """When (by our clock) the command that led to the last event of a kind began its work, and how
    many seconds it had needed for its start until then."""

    lines = node.ssh(f"journalctl -o json VFF_QOS_EVENT={kind}").splitlines()
    entry = json.loads(lines[-1])
    began, ended = (int(entry[f"VFF_QOS_{name}_US"]) / 1e6 for name in ("BEGAN", "ENDED"))
    took_s = int(entry["VFF_QOS_TOOK_MS"]) / 1e3
    return began - node.clock_ahead_s(), took_s - (ended - began)


def _settled(report: Report, event: float, *, lifted: bool) -> dict[str, float]:
    """Seconds from the event until each user's rate was lifted, or held again.

    It counts to the beginning of the first sample that shows it and with which it stays so, on
    average, for two seconds: sources send in blocks, and queues empty in between.
    """
    took = {}
    for m in report.measurements:
        assert m.limit_bps
        start = event - report.clock
        rates = [(at - _SAMPLE_S, rate / m.limit_bps) for at, rate in m.series]
        times = []
        for number, (at, rate) in enumerate(rates):
            following = [later for _at, later in rates[number : number + _STAYS_SAMPLES]]
            mean = sum(following) / len(following)
            shown = min(rate, mean) >= _LIFTED if lifted else max(rate, mean) <= _HELD
            if at >= start and shown:
                times.append(at)
        took[m.user.email] = round(times[0] - start, 2) if times else math.inf
    return took


def _plot(reports: dict[str, Report], change: dict[str, Any], switch: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nothing: dict[str, float] = {}
    panels = [(f"{name}, limits as lines", report, nothing) for name, report in reports.items()]
    panels += [
        ("download: limit changed under a running transfer", change["report"], change["events"]),
        *(
            (f"download: {title}", switch["report"], {kind: switch["events"][kind]})
            for kind, title in (("suspended", "kill switch"), ("resumed", "limits are back"))
        ),
    ]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(11, 4.2 * len(panels)))
    for axis, (title, report, events) in zip(axes, panels, strict=True):
        for m in report.measurements:
            color = f"C{[user.email for user in DEMO_USERS].index(m.user.email)}"
            axis.plot(*zip(*[(at, rate / MBIT) for at, rate in m.series], strict=True),
                      color=color, linewidth=1.2, label=m.user.email,
                      drawstyle="steps-pre")  # a rate is that of the time before it  # fmt: skip
            if m.limit_bps:
                axis.axhline(m.limit_bps / MBIT, color=color, linewidth=0.7, linestyle="--")
        axis.set(title=title, ylabel="Mbit/s", xlabel="seconds", yscale="log", ylim=(0.5, 110))
        axis.set_yticks([1, 2, 5, 10, 20, 50, 100], [1, 2, 5, 10, 20, 50, 100])
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for kind, when in events.items():
            at = when - report.clock
            axis.axvline(at, color="black", linewidth=1)
            axis.annotate(f" {kind}", (at, 105), fontsize=8, va="top", rotation=90)
            if kind in switch["events"]:
                axis.set_xlim(at - 4, at + 4)
    axes[2].axhline(change["lowered"] / MBIT, color="C0", linewidth=0.7, linestyle=":")
    figure.tight_layout()
    figure.savefig(OUT / "rates.png", dpi=110)


def _verdict(result: dict[str, Any]) -> bool:
    """Say what was reached; False if anything is not as it should be."""
    wrong = [
        f"{row['email']} {row['direction']}: {row['error_pct']:+.1f} %"
        for row in result["users"]
        if row["error_pct"] is not None and abs(row["error_pct"]) > MAX_ERROR_PCT
    ]
    wrong += [
        f"after {row['after']}: {row['error_pct']:+.1f} %"
        for row in result["live_change"]
        if abs(row["error_pct"]) > MAX_ERROR_PCT
    ]
    for name, what in (("kill_switch", "unlimited"), ("restore", "limited again")):
        took_s, start_s = result[f"{name}_s"], result[f"{name}_start_s"]
        print(f"{what} {took_s:.2f} s after the command set to work (emulated, it took "
              f"{start_s:.1f} s to start)")  # fmt: skip
        if took_s > MAX_KILL_S:
            late = ", ".join(f"{email} {s}" for email, s in result[f"{name}_users_s"].items())
            wrong.append(f"{name}_s is {took_s} s, more than {MAX_KILL_S} s ({late})")
    wrong += [f"left behind: {line}" for line in result["residue"]]
    print("after qos-absent the node is as before" if not result["residue"] else "RESIDUE")
    print(f"report: {OUT / 'report.json'}\nplot:   {OUT / 'rates.png'}")
    for line in wrong:
        say(f"NOT AS IT SHOULD BE: {line}")
    if wrong:
        say(f"others had {result['stolen_pct']} % of this machine meanwhile (steal)")
    return not wrong
