"""The follower: speed, latency, memory, restart, collection, and two baselines."""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from lab.machine import Load
from vff_qos.core.owners import Owner
from vff_qos.kernel.packed.conntrack import decode, decode_tuple
from vff_qos.kernel.packed.netlink import HEADER, NETLINK_NETFILTER, set_receive_buffer
from vff_qos.state import State

from . import (
    accounts_bench,
    flows_bench,
    metrics_bench,
    quic_bench,
    static_bench,
    top_bench,
    watch_bench,
    web_bench,
)
from .rows import Report
from .world import (
    HERE,
    MAJOR,
    Agent,
    Code,
    agent,
    count_classes,
    flow,
    is_parked,
    is_user,
    line,
    make_flows,
    make_some_flows,
    marked,
    push,
    run,
    wait_for_the_pool,
    wait_until,
)

_LINES = 400_000
_FLOWS = 10_000
_MARGIN = 10  # flows after them, whose marks tell that a run is over
#: After so long the counters of all classes were read; that costs `accounts`' rows every 5 min.
_SETTLED_S = 32.0
_MANY_USERS, _MANY_FLOWS = 10_000, 50_000
_NEWCOMERS = 1_000
_RATES = (10, 1_000, 10_000)
_NFNLGRP_CONNTRACK_UPDATE = 2
_CONNTRACK_U = "conntrack -U -p tcp -s {} --sport {} -d {} --dport {} --mark {}"


class Effort(NamedTuple):
    """How often and how long is measured."""

    runs: int
    latency_s: float
    idle_s: float


Step = Callable[[Report, Code, Effort], None]

QUICK = Effort(runs=2, latency_s=2.0, idle_s=15.0)
FULL = Effort(runs=5, latency_s=5.0, idle_s=60.0)


def measure(report: Report, effort: Effort, base: Code | None = None) -> None:
    """All of it; with ``base`` its agent has a turn at each step, and ratios come last."""
    steps = [*(_known_users(users) for users in (100, 1_000)), *map(latency, _RATES), _node]
    steps += [
        lambda report, code, effort: flows_bench.measure(report, code, effort.runs),
        newcomers,
        accounts,
    ]
    for step in steps:
        for code in (base, HERE) if base else (HERE,):
            with report.under(code.prefix):
                step(report, code, effort)
    baselines(report, effort.runs)
    quic_bench.measure(report, effort.runs)
    static_bench.measure(report, effort.runs)
    if base:
        report.ratios(base.prefix)


def _known_users(users: int) -> Step:
    def step(report: Report, code: Code, effort: Effort) -> None:
        with agent(code=code) as follower:
            throughput(report, follower, users, effort.runs)

    return step


def _node(report: Report, code: Code, effort: Effort) -> None:
    """What is measured on one agent with 10,000 users."""
    with agent(code=code) as follower:
        throughput(report, follower, _MANY_USERS, effort.runs)
        memory_and_idle(report, follower, effort.idle_s)
        if code == HERE:
            watch_bench.measure(report, follower, _MANY_USERS, effort.runs)
            top_bench.measure(report, follower, _MANY_USERS, effort.runs, effort.idle_s)
            web_bench.measure(report, follower, _MANY_USERS, effort.idle_s)
            metrics_bench.measure(report, follower, _MANY_USERS, effort.runs)
        policy(report, follower, effort.runs)
        restart(report, follower, effort.runs)
        collection(report, follower, effort.runs)


def throughput(report: Report, follower: Agent, users: int, runs: int) -> None:
    """Lines a second from the file to marks on existing flows, and the CPU time of each."""
    report.progress(f"{users:,} users: their first lines, then {runs} times {_LINES:,} lines")
    make_flows(_FLOWS + _MARGIN)
    first = push(follower, [line(n, users) for n in range(_FLOWS)], _FLOWS - 1)
    block = [line(n % _FLOWS, users) for n in range(_LINES)]
    rates, cpu_us = [], []
    for number in range(runs):
        cpu = follower.cpu_s()
        last = _FLOWS + number
        rates.append(push(follower, [*block, line(last, users)], last))
        cpu_us.append((follower.cpu_s() - cpu) / _LINES * 1e6)
    report.add(f"follow.lines_per_s.users_{users}", rates, "lines/s")
    report.add(f"follow.cpu_us_per_line.users_{users}", cpu_us, "us")
    report.add(f"follow.first_lines_per_s.users_{users}", [first], "lines/s")


class _Watcher(threading.Thread):
    """Notes when each flow got its mark, from conntrack's own events."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, float] = {}
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        set_receive_buffer(self._sock, 64 << 20)
        self._sock.bind((0, 1 << (_NFNLGRP_CONNTRACK_UPDATE - 1)))
        self._sock.settimeout(0.2)
        self.done = False
        self._raw: list[tuple[float, bytes]] = []

    def run(self) -> None:
        while not self.done:
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                continue
            self._raw.append((time.perf_counter(), data))

    @property
    def count(self) -> int:
        """How many changes were heard of."""
        return len(self._raw)

    def finish(self) -> dict[int, float]:
        """{number of the flow: time of its mark}."""
        self.done = True
        self.join()
        self._sock.close()
        for when, data in self._raw:
            entry = decode(data[HEADER.size :])
            found = decode_tuple(entry.tuple_raw)
            if found and entry.mark >> 16 == MAJOR:
                block = struct.unpack(">I", found.src)[0] - 0xC6336401
                self.seen.setdefault(block * 32_000 + found.sport - 20_000, when)
        return self.seen


def latency(rate: int) -> Step:
    """From write() to the mark, for new flows of known users at ``rate`` lines a second."""

    def step(report: Report, code: Code, effort: Effort) -> None:
        seconds = effort.latency_s
        report.progress(f"latency at {rate:,} lines/s, {effort.runs} times {seconds:.0f} s")
        half, tail, cpu, stolen = [], [], [], []
        for _ in range(effort.runs):
            with agent(code=code) as follower:
                load = Load()
                delays, cpu_pct = _delays(follower, rate, seconds)
                stolen.append(load.stolen_pct())
            half.append(delays[len(delays) // 2])
            tail.append(delays[len(delays) * 99 // 100])
            cpu.append(cpu_pct)
        report.add(f"follow.latency_p50_ms.rate_{rate}", half, "ms")
        report.add(f"follow.latency_p99_ms.rate_{rate}", tail, "ms")
        report.add(f"follow.cpu_pct.rate_{rate}", cpu, "%")
        # The tail follows it, run by run.
        report.add(f"machine.stolen_pct.rate_{rate}", stolen, "%")

    return step


def _delays(follower: Agent, rate: int, seconds: float) -> tuple[list[float], float]:
    """Sorted delays in ms, and the agent's CPU time in percent."""
    users, count = 100, int(rate * seconds)
    make_flows(count + users)
    push(follower, [line(count + n, users) for n in range(users)], count + users - 1)
    time.sleep(2.0)
    lines = [line(number, users) for number in range(count)]
    written: list[float] = []
    watcher = _Watcher()
    watcher.start()
    descriptor = os.open(follower.log, os.O_WRONLY | os.O_APPEND)
    # A collection in this process would look like a delay of the agent.
    gc.disable()
    cpu, start = follower.cpu_s(), time.perf_counter()
    for number in range(count):
        due = start + number / rate
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        written.append(time.perf_counter())
        os.write(descriptor, lines[number])
    spent = time.perf_counter() - start
    cpu = follower.cpu_s() - cpu
    gc.enable()
    os.close(descriptor)
    wait_until("a mark on every flow", lambda: watcher.count >= count, 30)
    seen = watcher.finish()
    lost = [number for number in range(count) if number not in seen]
    if lost:
        raise SystemExit(f"bench: {len(lost)} of {count} flows at {rate} lines/s got no mark")
    return sorted((seen[n] - written[n]) * 1e3 for n in range(count)), 100 * cpu / spent


def memory_and_idle(report: Report, follower: Agent, seconds: float) -> None:
    """Memory with 10,000 users and 50,000 live flows; CPU time when nothing is written."""
    report.progress(f"{_MANY_FLOWS:,} live flows, then {seconds:.0f} s of silence")
    # Into the table as it is: emptying it would set the agent to mending it for a minute.
    make_some_flows([flow(n) for n in range(_FLOWS + _MARGIN, _MANY_FLOWS)])
    lines = [line(n, _MANY_USERS) for n in range(_MANY_FLOWS)]
    push(follower, lines, _MANY_FLOWS - 1)
    time.sleep(_SETTLED_S)
    wait_for_the_pool(follower)
    report.add(f"follow.rss_mib.users_{_MANY_USERS}", [follower.rss_mib()], "MiB")
    cpu, start = follower.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    used = (follower.cpu_s() - cpu) / (time.perf_counter() - start)
    report.add("follow.cpu_pct.idle", [100 * used], "%")


def policy(report: Report, follower: Agent, runs: int) -> None:
    """From a new policy file to other limits in all 10,000 classes."""
    report.progress(f"{runs} policies for {_MANY_USERS:,} users")
    spent = []
    for number in range(runs):
        start = time.perf_counter()
        follower.write_policy("", f"{60 + number}mbit")
        ceil_bps = (60 + number) * 10**6
        wait_until(
            f"{60 + number} Mbit/s for everybody",
            lambda wanted=ceil_bps: (
                count_classes(lambda c: c.params.ceil_bps == wanted) >= _MANY_USERS
            ),  # type: ignore[misc]
            60,
        )
        spent.append(time.perf_counter() - start)
    report.add(f"policy.apply_s.users_{_MANY_USERS}", spent, "s")


def restart(report: Report, follower: Agent, runs: int) -> None:
    """From the start of the process until 10,000 flows of its last seconds bear their marks."""
    report.progress(f"{runs} restarts after kill -9 with {_FLOWS:,} unmarked flows")
    spent, cpu = [], []
    for _ in range(runs):
        follower.stop(signal.SIGKILL)
        make_flows(_FLOWS)
        follower.append([line(n, _MANY_USERS) for n in range(_FLOWS)])
        start = time.perf_counter()
        follower.start()
        wait_until("a mark on every flow", lambda: marked() >= _FLOWS, 60)
        spent.append(time.perf_counter() - start)
        cpu.append(follower.cpu_s())
    report.add(f"follow.restart_s.flows_{_FLOWS}", spent, "s")
    report.add(f"follow.restart_cpu_s.flows_{_FLOWS}", cpu, "s")


def accounts(report: Report, code: Code, _effort: Effort) -> None:
    """What accounting costs.  Of this checkout alone: an older one may have none."""
    if code == HERE:
        accounts_bench.measure(report)


def newcomers(report: Report, code: Code, effort: Effort) -> None:
    """A reboot of a node with 10,000 users, and 1,000 new users at once on it.

    Of this checkout alone: an older agent refuses a state that this one has written.
    """
    if code != HERE:
        return
    runs = effort.runs
    spent: list[float] = []
    with agent(start=False) as follower:
        report.progress(f"a reboot with {_MANY_USERS:,} users, {runs} times 1,000 new ones")
        owners = [Owner(f"user{n}@x", n + 2, since=1.0, moved=float(n)) for n in range(_MANY_USERS)]
        State(str(follower.directory / "state")).save_owners(owners)
        start = time.perf_counter()
        follower.start()
        wait_until("everybody's class", lambda: count_classes(is_user) >= _MANY_USERS, 240, 1.0)
        report.add(f"follow.reboot_s.users_{_MANY_USERS}", [time.perf_counter() - start], "s")
        cpu = [follower.cpu_s()]
        report.add(f"follow.reboot_cpu_s.users_{_MANY_USERS}", cpu, "s")
        for number in range(runs):
            wait_for_the_pool(follower)
            first = _MANY_USERS + number * _NEWCOMERS
            numbers = range(first, first + _NEWCOMERS)
            make_flows(0)
            make_some_flows([flow(n) for n in numbers])
            lines = [line(n, 10**9) for n in numbers]
            start = time.perf_counter()
            follower.append(lines)
            wait_until("their marks", lambda: marked() >= _NEWCOMERS, 60)
            spent.append(time.perf_counter() - start)
    report.add(f"follow.new_users_s.users_{_NEWCOMERS}_of_{_MANY_USERS}", spent, "s")


def collection(report: Report, follower: Agent, runs: int) -> None:
    """``vff-qos gc`` that parks 10,000 users, and the one after it, which has nothing to do."""
    report.progress(f"{runs} collections of {_MANY_USERS:,} users, {runs} of nobody")
    parking, idle = [], []
    for number in range(runs):
        if number:
            make_flows(_FLOWS)
            follower.append([line(n, _MANY_USERS) for n in range(_FLOWS)])
            wait_until("everybody's return", lambda: marked() >= _FLOWS, 60)
        run("conntrack", "-F")
        time.sleep(1.1)
        before = count_classes(is_parked)
        start = time.perf_counter()
        follower.run("gc")
        parking.append(time.perf_counter() - start)
        parked = count_classes(is_parked)
        if before >= _MANY_USERS or parked < _MANY_USERS:
            raise SystemExit(f"bench: {before} classes were parked, and {parked} after gc")
        start = time.perf_counter()
        follower.run("gc")
        idle.append(time.perf_counter() - start)
    report.add(f"gc.collect_s.users_{_MANY_USERS}", parking, "s")
    report.add(f"gc.idle_s.users_{_MANY_USERS}", idle, "s")


def baselines(report: Report, runs: int) -> None:
    """The same mark with pyroute2's entry() and with a forked ``conntrack -U``."""
    report.progress("baselines: pyroute2, conntrack -U")
    make_flows(_FLOWS)
    report.add("baseline.pyroute2_entry_per_s", [_pyroute2(300) for _ in range(runs)], "marks/s")
    report.add("baseline.conntrack_u_per_s", [_forked(30) for _ in range(runs)], "marks/s")
    ours = "follow.lines_per_s.users_1000"
    report.ratio("follow.pyroute2_ratio", ours, "baseline.pyroute2_entry_per_s")
    report.ratio("follow.peer_ratio", ours, "baseline.conntrack_u_per_s")


def _pyroute2(count: int) -> float:
    from pyroute2 import NFCTSocket
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    netlink = NFCTSocket()
    start = time.perf_counter()
    for number in range(count):
        made = flow(number)
        netlink.entry(
            "set",
            mark=0x5100002A,
            tuple_orig=NFCTAttrTuple(
                saddr=socket.inet_ntoa(made.src), daddr=socket.inet_ntoa(made.dst),
                proto=made.proto, sport=made.sport, dport=made.dport,
            ),
        )  # fmt: skip
    spent = time.perf_counter() - start
    netlink.close()
    return count / spent


def _forked(count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        made = flow(number)
        src, dst = socket.inet_ntoa(made.src), socket.inet_ntoa(made.dst)
        # A mark that the flow does not have: conntrack leaves others alone.
        mark = 0x51000000 + time.perf_counter_ns() % 0xFFFF
        command = _CONNTRACK_U.format(src, made.sport, dst, made.dport, mark)
        subprocess.run(command.split(), capture_output=True, check=True)
    return count / (time.perf_counter() - start)
