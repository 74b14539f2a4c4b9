"""What splitting packets into frames costs, natively: processor time by rate, whole and split.

One sender of packets of 62 KiB, through the agent's tree, into a device whose other end drops them.
Decides up to which ceiling a node splits (`vff_qos.core.htb.splits`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import time

from pyroute2 import IPRoute

from lab.node import die_with_parent
from vff_qos.core.htb import (
    CEIL_MINOR,
    FIRST_USER_MINOR,
    ROOT_MINOR,
    NodeCapacity,
    shared_class,
    user_class,
)
from vff_qos.core.plan.handles import ROOT_PARENT, splitter
from vff_qos.kernel.packed.tc import ADD, ClassKey, Tc, add_class, encode_class
from vff_qos.kernel.route import delete_qdisc, put_splitter, put_tree

from .rows import Report

_RATES_BPS = (100_000_000, 300_000_000, 500_000_000, 900_000_000)
_MAJOR = 0x5100
_SPLIT_BYTES = 1_536
_UDP_SEGMENT = 103  # include/uapi/linux/udp.h
_FRAMES, _PAYLOAD = 44, 1_448
_PATH = """
ip link add s0 type veth peer name r0
ip address add 10.0.0.1/24 dev s0
ip link set s0 up
ip link set r0 up
ip neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev s0
"""


def measure(report: Report, seconds: float, runs: int) -> None:
    """Per cent of a core, a row for each rate and way.  Call it in a namespace of its own."""
    subprocess.run(["sh", "-euc", _PATH], check=True)
    index = socket.if_nametoindex("s0")
    for rate_bps in _RATES_BPS:
        name = f"split.core_pct.mbit_{rate_bps // 1_000_000}"
        report.progress(f"{rate_bps // 1_000_000} Mbit/s in frames")
        for way, split_bytes in (("whole", 0), ("split", _SPLIT_BYTES)):
            found = [_core_pct(index, rate_bps, split_bytes, seconds) for _ in range(runs)]
            report.add(f"{name}.{way}", found, "%")


def _core_pct(index: int, rate_bps: int, split_bytes: int, seconds: float) -> float:
    ipr, tc = IPRoute(), Tc()
    parent = ROOT_PARENT
    if split_bytes:
        put_splitter(ipr, index, _MAJOR, split_bytes)
        parent = splitter(_MAJOR) | 1
    put_tree(ipr, index, _MAJOR, FIRST_USER_MINOR, parent)
    shared = shared_class(max(_RATES_BPS))
    ceiling = ClassKey(index, _MAJOR, CEIL_MINOR)
    tc.apply([(lambda s: encode_class(s, ceiling, ROOT_MINOR, shared, ADD), "ceiling")])
    params = user_class(rate_bps, node=NodeCapacity(max(_RATES_BPS)))
    tc.apply(add_class(ClassKey(index, _MAJOR, FIRST_USER_MINOR), CEIL_MINOR, params, "pfifo"))
    tie = die_with_parent()
    sender = os.fork()
    if sender == 0:
        tie()
        _send()
    time.sleep(1.0)
    before, began = _busy_s(), time.monotonic()
    time.sleep(seconds)
    used_s, took_s = _busy_s() - before, time.monotonic() - began
    os.kill(sender, 9)
    os.waitpid(sender, 0)
    delete_qdisc(ipr, index, ROOT_PARENT)
    tc.close()
    ipr.close()
    return 100 * used_s / took_s


def _send() -> None:
    """Send for ever."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, _PAYLOAD)
    sock.connect(("10.0.0.2", 9))
    while True:
        sock.send(bytes(_FRAMES * _PAYLOAD))


def _busy_s() -> float:
    """Processor time of the whole machine that was not idle, waiting or stolen (proc_stat(5))."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _wait, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
