"""The follower and flows: first claims, forged lines that name none, a flood of SYNs."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lab.node import die_with_parent
from vff_qos.kernel.packed.conntrack import Conntrack, prepare

from .rows import Report
from .world import (
    NODE,
    PORT,
    Agent,
    Code,
    agent,
    flow,
    line,
    line_from,
    make_flows,
    make_some_flows,
    push,
    run,
    unshare_network,
    wait_for_the_pool,
    wait_until,
)

_USERS = 1_000
_FLOWS = 10_000
#: Flows whose marks tell that what stands before them in the log has been read.
_WITNESSES = 20_000
#: {name of the row: (service ports, how many addresses the node has)}.
_NODES = {"1x1": ("443", 1), "300x8": ("443, 20000-20298", 8)}
#: So many lines that what comes each second whatever is read, and the wait for retries, are lost
#: among them.
_PROBE_LINES, _MAX_LINES, _FORGED_S = 100, 200_000, 4.0
#: Later than this nobody asks the kernel again for the flow of a line.
_RETRIES_END_S = 3.0
_SYNS, _SYNS_A_TICK, _TICK_S = 200_000, 600, 0.010
_HONEST_EACH_S = 0.02
#: What has no mark so long after the flood does not get one.
_LAST_MARK_S = 12.0
_NODE_MAC, _PEER_MAC = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


def measure(report: Report, code: Code, runs: int) -> None:
    """All of it, with the agent of ``code``."""
    with agent(code=code) as follower:
        first_claims(report, follower, runs)
    for name, (ports, addresses) in _NODES.items():
        with _addresses(addresses), agent(code=code, service_ports=ports) as follower:
            forged(report, follower, name, runs)
    floods = [syn_flood(report, code) for _ in range(runs)]
    report.add("follow.syn_flood_mib", [flood.grown_mib for flood in floods], "MiB")
    report.add("follow.syn_flood_lost", [flood.lost for flood in floods], "flows")
    report.add("follow.syn_flood_syns_per_s", [flood.syns_per_s for flood in floods], "SYNs/s")


def _make_users(follower: Agent) -> None:
    """A thousand users whom the agent knows, and nothing left for it to do."""
    make_flows(_USERS)
    push(follower, [line(n, _USERS) for n in range(_USERS)], _USERS - 1)
    wait_for_the_pool(follower)
    time.sleep(2.0)


def first_claims(report: Report, follower: Agent, runs: int) -> None:
    """Lines a second to marks on flows that live, of known users, and that nobody has claimed."""
    report.progress(f"{runs} times the first claims of {_FLOWS:,} live flows")
    _make_users(follower)
    rates, cpu_us = [], []
    for number in range(runs):
        numbers = range(_USERS + number * _FLOWS, _USERS + (number + 1) * _FLOWS)
        make_some_flows([flow(n) for n in numbers])
        # Their lines are younger than they, also in whole seconds.
        time.sleep(1.5)
        lines = [line(n, _USERS) for n in numbers]
        cpu_s = follower.cpu_s()
        rates.append(push(follower, lines, numbers[-1]))
        cpu_us.append((follower.cpu_s() - cpu_s) / _FLOWS * 1e6)
    report.add("follow.first_claims_per_s", rates, "lines/s")
    report.add("follow.first_claims_cpu_us", cpu_us, "us")


def forged(report: Report, follower: Agent, name: str, runs: int) -> None:
    """CPU time of a line whose source is nobody's, each another one."""
    _make_users(follower)
    make_some_flows([flow(_WITNESSES + n) for n in range(runs + 1)])
    time.sleep(1.5)
    probe_us = _forged_us(follower, 0, _PROBE_LINES, _WITNESSES)
    # As many as such an agent reads in some seconds, if that is less than all.
    count = min(max(int(_FORGED_S * 1e6 / probe_us), _PROBE_LINES), _MAX_LINES)
    report.progress(f"{runs} times {count:,} forged lines, {name}")
    cpu_us = [
        _forged_us(follower, (run + 1) * _MAX_LINES, count, _WITNESSES + run + 1)
        for run in range(runs)
    ]
    report.add(f"follow.forged_us.{name}", cpu_us, "us")


def _forged_us(follower: Agent, first: int, count: int, witness: int) -> float:
    now_s = time.time()
    lines = [
        line_from(
            struct.pack(">I", 0xC6120000 + n // 32_000), 20_000 + n % 32_000, n % _USERS, now_s
        )
        for n in range(first, first + count)
    ]
    cpu_s = follower.cpu_s()
    push(follower, [*lines, line(witness, _USERS)], witness)
    time.sleep(_RETRIES_END_S)
    return (follower.cpu_s() - cpu_s) / count * 1e6


@contextmanager
def _addresses(count: int) -> Iterator[None]:
    """So many addresses of this node, while it lasts."""
    more = [f"203.0.113.{host}/32" for host in range(2, count + 1)]
    for address in more:
        run("ip", "address", "add", address, "dev", "lo")
    try:
        yield
    finally:
        for address in more:
            run("ip", "address", "del", address, "dev", "lo")


class Flood(NamedTuple):
    """What a flood of SYNs did."""

    grown_mib: float
    lost: int  # honest flows that began meanwhile and did not get their marks
    syns_per_s: float


def syn_flood(report: Report, code: Code) -> Flood:
    """SYNs of 200,000 sources from a peer, and honest flows with their lines meanwhile."""
    report.progress(f"a flood of {_SYNS:,} SYNs")
    with agent(code=code) as follower, _listener():
        _make_users(follower)
        before_mib = most_mib = follower.rss_mib()
        honest = _WITNESSES
        with _Flooder() as flooder:
            start = time.perf_counter()
            while flooder.sends():
                made = flow(honest)
                make_some_flows([made])
                line_of_it = line_from(made.src, made.sport, honest % _USERS, time.time())
                follower.append([line_of_it])
                honest += 1
                most_mib = max(most_mib, follower.rss_mib())
                time.sleep(_HONEST_EACH_S)
            spent_s = time.perf_counter() - start
        seen = int(run("conntrack", "-C"))
        if seen < 0.9 * _SYNS:
            raise SystemExit(f"bench: conntrack counts only {seen} flows after {_SYNS} SYNs")
        lost, end_s = 1, time.perf_counter() + _LAST_MARK_S
        conntrack = Conntrack()
        asked = [prepare(flow(number)) for number in range(_WITNESSES, honest)]
        while lost and time.perf_counter() < end_s:
            time.sleep(_RETRIES_END_S)
            lost = sum(1 for mark in conntrack.get_marks(asked) if not mark)
            most_mib = max(most_mib, follower.rss_mib())
        conntrack.close()
    run("conntrack", "-F")
    return Flood(most_mib - before_mib, lost, _SYNS / spent_s)


@contextmanager
def _listener() -> Iterator[None]:
    """Somebody listens, as an engine does; the kernel answers by itself."""
    with socket.create_server((socket.inet_ntoa(NODE), PORT)):
        yield


class _Flooder:
    """A process in a namespace of its own, behind a veth pair, that sends SYNs of all the world."""

    def __enter__(self) -> _Flooder:
        tie = die_with_parent()
        ready, tell_ready = os.pipe()
        start, tell_start = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                tie()
                unshare_network()
                frames = _syns()
                os.write(tell_ready, b"1")
                os.read(start, 1)
                _send(frames)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(tell_ready)
        if not os.read(ready, 1):
            raise SystemExit("bench: the sender of SYNs did not start")
        self._lay_wire()
        os.write(tell_start, b"1")
        for descriptor in (ready, start, tell_start):
            os.close(descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        # The pair goes with the sender's namespace.
        device = Path("/sys/class/net/flood0")
        wait_until("the end of the sender's namespace", lambda: not device.exists(), 30)

    def sends(self) -> bool:
        """Whether it has some left."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            return True
        self._pid = 0
        if status:
            raise SystemExit(f"bench: the sender of SYNs failed: {status}")
        return False

    def _lay_wire(self) -> None:
        """The pair; answers to all the world leave through it."""
        run("ip", "link", "add", "flood0", "address", _NODE_MAC.hex(":"), "type", "veth", "peer",
            "name", "flood1", "address", _PEER_MAC.hex(":"), "netns", str(self._pid))  # fmt: skip
        run("ip", "address", "add", "192.0.2.1/24", "dev", "flood0")
        run("ip", "link", "set", "flood0", "up")
        run("nsenter", f"--net=/proc/{self._pid}/ns/net", "ip", "link", "set", "flood1", "up")
        run("ip", "neighbour", "add", "192.0.2.2", "lladdr", _PEER_MAC.hex(":"), "dev", "flood0")
        run("ip", "route", "add", "default", "via", "192.0.2.2")
        wait_until("a wire", lambda: "state UP" in run("ip", "link", "show", "dev", "flood0"), 10)


def _send(frames: list[bytes]) -> None:
    """All of them, at their pace."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("flood1", 0))
    due = time.perf_counter()
    for at in range(0, len(frames), _SYNS_A_TICK):
        for frame in frames[at : at + _SYNS_A_TICK]:
            sock.send(frame)
        due += _TICK_S
        if (left := due - time.perf_counter()) > 0:
            time.sleep(left)


def _syns() -> list[bytes]:
    """A frame with a SYN of each source."""
    sequences = random.Random(20261125)
    return [_syn(number, sequences.randrange(1 << 32)) for number in range(_SYNS)]


def _syn(number: int, sequence: int) -> bytes:
    address = struct.pack(">I", 0x2D000001 + number)  # 45.0.0.1 and up
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, number & 0xFFFF, 0, 64, 6, 0) + address + NODE
    ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
    port = 1_024 + number % 60_000
    tcp = struct.pack(">HHIIBBHHH", port, PORT, sequence, 0, 0x50, 2, 64_240, 0, 0)
    pseudo = address + NODE + struct.pack(">BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + struct.pack(">H", _checksum(pseudo + tcp)) + tcp[18:]
    return _NODE_MAC + _PEER_MAC + b"\x08\0" + ip + tcp


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
