"""How exactly the classes hold their limits, natively: every rate, direction, transport, flows.

    sender -- node -- meter -- receiver

The node forwards; its device towards the meter bears the tree for downloads, and what comes in
from the sender goes through the IFB with the tree for uploads, each with one class whose numbers
and leaf are those that the agent gives a user.  A queue of the meter's device, behind all of it,
counts wire bytes.  How packets find their class is not measured here: all are of that class.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from lab.counters import Queues, inside
from lab.machine import Load
from lab.network import FAR_TCP
from lab.node import die_with_parent
from vff_qos.core.htb import FIRST_USER_MINOR, shared_class, user_class
from vff_qos.kernel.packed.tc import ADD, ClassKey, Tc, add_class, encode_class

from .rows import Report

RATES_BPS = (1_000_000, 5_000_000, 20_000_000, 100_000_000, 500_000_000)
_MAJOR = 0x5100
_CEIL_BPS = 100_000_000_000
_PATH = ("sender", "node", "meter", "receiver")
_RECEIVER = "10.0.3.2"
_DATAGRAM_BYTES = 1_400
#: Long enough for 80 packets of two frames at 1 Mbit/s.
_WINDOW_S = 2.0


def measure(report: Report, file: Path, windows: int, warmup_s: float) -> None:
    """The whole sweep: a row for each direction and transport, all points in ``file``.

    A point is the median of so many ``windows`` of two seconds.
    """
    points = []
    with _network() as network:
        for direction in ("download", "upload"):
            for transport in ("tcp", "udp"):
                errors: list[float] = []
                for rate_bps in RATES_BPS:
                    report.progress(f"{direction}, {transport}, {rate_bps / 1e6:.0f} Mbit/s")
                    network.limit(direction, rate_bps)
                    for flows in (1, 32):
                        load = Load()
                        rates = network.send(rate_bps, transport, flows, warmup_s, windows)
                        measured = statistics.median(rates)
                        error_pct = round(100 * (measured / rate_bps - 1), 3)
                        errors.append(abs(error_pct))
                        points.append(
                            {
                                "rate_bps": rate_bps,
                                "direction": direction,
                                "transport": transport,
                                "flows": flows,
                                "measured_bps": round(measured),
                                "error_pct": error_pct,
                                "runs": [round(rate) for rate in rates],
                                "stolen_pct": round(load.stolen_pct(), 1),
                            }
                        )
                report.add(f"accuracy.error_pct.{direction}.{transport}", errors, "%")
                report.add(f"accuracy.worst_pct.{direction}.{transport}", [max(errors)], "%")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"rows": points}, indent=1), encoding="utf-8")


class _Network:
    """The four namespaces; they live as long as their processes."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._devices = {"download": "to-meter", "upload": "ifb"}
        self._build()
        self._queues = Queues(self.namespace("meter"))

    def namespace(self, name: str) -> str:
        """Its path, for setns(2)."""
        return f"/proc/{self._pids[name]}/ns/net"

    def run(self, name: str, *command: str) -> str:
        """Output of a command in a namespace; it must succeed."""
        done = subprocess.run(
            ["nsenter", f"--net={self.namespace(name)}", "--", *command],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"bench: in {name}, {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def _build(self) -> None:
        for number, (left, right) in enumerate(pairwise(_PATH), 1):
            self.run(left, "ip", "link", "add", f"to-{right}", "type", "veth", "peer",
                     "name", f"to-{left}", "netns", str(self._pids[right]))  # fmt: skip
            for name, device, host in ((left, f"to-{right}", 1), (right, f"to-{left}", 2)):
                self.run(name, "ip", "address", "add", f"10.0.{number}.{host}/24", "dev", device)
                self.run(name, "ip", "link", "set", device, "up")
        for name, net, router in (
            ("sender", "10.0.0.0/16", "10.0.1.2"),
            ("node", "10.0.3.0/24", "10.0.2.2"),
            ("meter", "10.0.1.0/24", "10.0.2.1"),
            ("receiver", "10.0.0.0/16", "10.0.3.1"),
        ):
            self.run(name, "ip", "route", "add", net, "via", router)
        for name in ("node", "meter"):
            self.run(name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.run("sender", "sysctl", "-eqw", f"{FAR_TCP}=0")
        self.run("meter", "tc", "qdisc", "add", "dev", "to-receiver", "root", "pfifo",
                 "limit", "10000")  # fmt: skip
        self.run("node", "ip", "link", "add", "ifb", "type", "ifb")
        self.run("node", "ip", "link", "set", "ifb", "up")
        self.run("node", "tc", "qdisc", "add", "dev", "to-sender", "clsact")
        self.run("node", "tc", "filter", "add", "dev", "to-sender", "ingress", "protocol", "ip",
                 "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect",
                 "dev", "ifb")  # fmt: skip

    def limit(self, direction: str, rate_bps: int) -> None:
        """The tree of one direction with one user of this limit; the other has none."""
        for device in self._devices.values():
            roots = json.loads(self.run("node", "tc", "-j", "qdisc", "show", "dev", device))
            if any(qdisc.get("kind") == "htb" for qdisc in roots):
                self.run("node", "tc", "qdisc", "del", "dev", device, "root")
        device = self._devices[direction]
        self.run("node", "tc", "qdisc", "add", "dev", device, "root", "handle",
                 f"{_MAJOR:x}:", "htb", "default", f"{FIRST_USER_MINOR:x}")  # fmt: skip
        with inside(self.namespace("node")):
            tc, index = Tc(), socket.if_nametoindex(device)
            ceiling = ClassKey(index, _MAJOR, 1)
            shared = shared_class(_CEIL_BPS)
            requests = [(lambda s: encode_class(s, ceiling, 0, shared, ADD), "ceiling")]
            key = ClassKey(index, _MAJOR, FIRST_USER_MINOR)
            requests += add_class(key, 1, user_class(rate_bps), "pfifo")
            failed = tc.attempt(requests)
            tc.close()
        if failed:
            raise SystemExit(f"bench: the tree of {device}: {failed}")

    def send(
        self, rate_bps: int, transport: str, flows: int, warmup_s: float, windows: int
    ) -> list[float]:
        """Send more than the limit; returns what came through, in bit/s of wire bytes."""
        command = ["iperf3", "-c", _RECEIVER, "-P", str(flows), "-t", "600", "-i", "0"]
        if transport == "udp":
            offered = rate_bps * 5 // 4 // flows
            command += ["-u", "-l", str(_DATAGRAM_BYTES), "-b", str(offered)]
        else:
            # Not this machine's own: BBR takes a virtual link for one of gigabits.
            command += ["-C", "cubic"]
        server = self._start("receiver", ["iperf3", "-s", "-1"])
        time.sleep(0.3)
        client = self._start("sender", command)
        try:
            time.sleep(warmup_s)
            samples = [self._sample()]
            for _ in range(windows):
                time.sleep(_WINDOW_S)
                samples.append(self._sample())
            if client.poll() is not None:
                raise SystemExit(f"bench: iperf3 ended: {client.stdout and client.stdout.read()}")
        finally:
            for process in (client, server):
                process.kill()
                process.wait()
        return [
            8 * (now - before) / (ended - began)
            for (began, before), (ended, now) in pairwise(samples)
        ]

    def _sample(self) -> tuple[float, int]:
        """Now, and the wire bytes so far."""
        return time.monotonic(), self._queues.read()["to-receiver"]

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["nsenter", f"--net={self.namespace(name)}", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent(),
        )


@contextmanager
def _network() -> Iterator[_Network]:
    holders = {
        name: subprocess.Popen(
            ["unshare", "--net", "--", "sleep", "infinity"], preexec_fn=die_with_parent()
        )
        for name in _PATH
    }
    try:
        own = os.readlink("/proc/self/ns/net")
        for holder in holders.values():
            while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
                time.sleep(0.01)
        yield _Network({name: holder.pid for name, holder in holders.items()})
    finally:
        for holder in holders.values():
            holder.kill()
            holder.wait()
