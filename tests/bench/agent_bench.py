"""The follower: speed, latency, memory, restart, collection, and two baselines."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time

from vff_qos.core.htb import PARKED_PRIO
from vff_qos.kernel.conntrack import Conntrack, decode, decode_tuple
from vff_qos.kernel.netlink import HEADER, NETLINK_NETFILTER, set_receive_buffer
from vff_qos.kernel.tc import Tc

from .rows import Report
from .world import (
    BENCH_CPU,
    MAJOR,
    Agent,
    agent,
    flow,
    line,
    make_flows,
    marked,
    run,
    wait_until,
)

_LINES = 400_000
_FLOWS = 10_000
_NFNLGRP_CONNTRACK_UPDATE = 2


def throughput(report: Report, runs: int) -> float:
    """Lines a second from the file to marks on existing flows; the median at 1,000 users."""
    result = 0.0
    for users in (100, 1_000, 10_000):
        rates, first = [], []
        with agent() as follower:
            make_flows(_FLOWS + runs)
            first.append(_push(follower, [line(n, users) for n in range(_FLOWS)], _FLOWS - 1))
            block = [line(n % _FLOWS, users, n) for n in range(_LINES)]
            for number in range(runs):
                last = _FLOWS + number
                rates.append(_push(follower, [*block, line(last, users)], last))
        value = report.add(f"follow.lines_per_s.users_{users}", rates, "lines/s")
        report.add(f"follow.first_lines_per_s.users_{users}", first, "lines/s")
        result = value if users == 1_000 else result
    return result


def _push(follower: Agent, lines: list[bytes], last: int) -> float:
    """Append ``lines``; lines a second until the flow of the last one bears a mark."""
    conntrack = Conntrack()
    # The file grows in portions, so that writing and reading overlap as in life.
    start = time.perf_counter()
    for at in range(0, len(lines), 20_000):
        follower.append(lines[at : at + 20_000])
    wait_until(lambda: bool(conntrack.get_marks([flow(last)])[0]), 120, 0.001)
    spent = time.perf_counter() - start
    conntrack.close()
    return len(lines) / spent


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


def latency(report: Report, seconds: float) -> None:
    """From write() to the mark, for new flows of known users, at three rates."""
    for rate in (10, 1_000, 10_000):
        count = int(rate * seconds)
        with agent() as follower:
            make_flows(count + 100)
            _push(follower, [line(count + n, 100) for n in range(100)], count + 99)
            time.sleep(2.0)
            watcher = _Watcher()
            watcher.start()
            written: list[float] = []
            descriptor = os.open(follower.log, os.O_WRONLY | os.O_APPEND)
            cpu, start = follower.cpu_s(), time.perf_counter()
            lines = [line(number, 100, number) for number in range(count)]
            for number in range(count):
                due = start + number / rate
                while (left := due - time.perf_counter()) > 0:
                    time.sleep(left)
                written.append(time.perf_counter())
                os.write(descriptor, lines[number])
            spent = time.perf_counter() - start
            cpu = follower.cpu_s() - cpu
            os.close(descriptor)
            time.sleep(0.5)
            seen = watcher.finish()
        delays = sorted((seen[n] - written[n]) * 1e3 for n in range(count) if n in seen)
        if len(delays) < count:
            print(f"  (of {count} flows {count - len(delays)} were not seen to be marked)")
        report.add(f"follow.latency_p50_ms.rate_{rate}", [delays[len(delays) // 2]], "ms")
        report.add(f"follow.latency_p99_ms.rate_{rate}", [delays[len(delays) * 99 // 100]], "ms")
        report.add(f"follow.cpu_pct.rate_{rate}", [100 * cpu / spent], "%")


def memory_and_restart(report: Report, runs: int) -> None:
    """Memory at 10,000 users and 50,000 flows; restart, collection and policy at that size."""
    users = 10_000
    with agent() as follower:
        make_flows(50_000)
        _push(follower, [line(n, users) for n in range(50_000)], 49_999)
        report.add(f"follow.rss_mib.users_{users}", [follower.rss_mib()], "MiB")
        cpu = follower.cpu_s()
        time.sleep(10)
        report.add("follow.cpu_pct.idle", [(follower.cpu_s() - cpu) * 10], "%")
        applied = []
        for number in range(runs):
            start = time.perf_counter()
            follower.write_policy("", f"{60 + number}mbit")
            wait_until(lambda n=number: _all_changed((60 + n) * 10**6), 60)  # type: ignore[misc]
            applied.append(time.perf_counter() - start)
        report.add(f"policy.apply_s.users_{users}", applied, "s")
        restarts = []
        for _ in range(runs):
            follower.stop(signal.SIGKILL)
            make_flows(_FLOWS)
            follower.append([line(n, users) for n in range(_FLOWS)])
            start = time.perf_counter()
            follower.start()
            wait_until(lambda: marked() >= _FLOWS, 60)
            restarts.append(time.perf_counter() - start)
        report.add(f"follow.restart_s.flows_{_FLOWS}", restarts, "s")
        follower.stop()
        run("conntrack", "-F")
        time.sleep(1.1)
        run(*follower.command("gc"))
        time.sleep(1.1)
        start = time.perf_counter()
        run(*follower.command("gc"))
        spent = time.perf_counter() - start
        if sum(1 for state in _classes() if state.params.prio == PARKED_PRIO) < users:
            raise SystemExit("bench: gc did not park all users")
        report.add(f"gc.collect_s.users_{users}", [spent], "s")


def _classes() -> list:  # type: ignore[type-arg]
    tc = Tc()
    found = list(tc.classes(socket.if_nametoindex("wan0"), MAJOR).values())
    tc.close()
    return found


def _all_changed(ceil_bps: int) -> bool:
    return sum(1 for state in _classes() if state.params.ceil_bps == ceil_bps) >= 10_000


def baselines(report: Report, ours: float) -> None:
    """The same mark with pyroute2's entry() and with a forked ``conntrack -U``."""
    from pyroute2 import NFCTSocket
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    make_flows(_FLOWS)
    os.sched_setaffinity(0, {BENCH_CPU})
    netlink = NFCTSocket()
    count = 300
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
    pyroute2 = count / (time.perf_counter() - start)
    netlink.close()
    report.add("baseline.pyroute2_entry_per_s", [pyroute2], "marks/s")
    count = 40
    start = time.perf_counter()
    for number in range(count):
        made = flow(number)
        subprocess.run(
            ["conntrack", "-U", "-p", "tcp", "--orig-src", socket.inet_ntoa(made.src),
             "--orig-dst", socket.inet_ntoa(made.dst), "--orig-port-src", str(made.sport),
             "--orig-port-dst", str(made.dport), "--mark", "0x5100002b"],
            capture_output=True, check=True,
        )  # fmt: skip
    forked = count / (time.perf_counter() - start)
    report.add("baseline.conntrack_u_per_s", [forked], "marks/s")
    report.ratio("follow.pyroute2_ratio", ours, pyroute2)
    report.ratio("follow.peer_ratio", ours, forked)


def measure(report: Report, quick: bool) -> None:
    """All of it; ``quick`` takes fewer runs."""
    runs = 2 if quick else 5
    ours = throughput(report, runs)
    latency(report, 2.0 if quick else 5.0)
    memory_and_restart(report, runs)
    baselines(report, ours)
