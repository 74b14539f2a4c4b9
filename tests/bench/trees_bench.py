"""Packets per second through one tree and through two, natively: one sender and two, each on a core
of its own.

This machine's kernel may lack cls_fw and act_skbedit: in their place a packet bears its class as
its priority (SO_PRIORITY), which HTB takes first, and a program of the same few steps leads it to
its queue.  All else is the agent's own: root, trees, shared classes, users' classes and leaves.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace

from pyroute2 import IPRoute

from lab.node import die_with_parent
from netns.queues import lead_packets
from vff_qos.commands.steps import carry_out
from vff_qos.core.htb import CEIL_MINOR, FIRST_USER_MINOR, user_class
from vff_qos.core.plan.desired import desired
from vff_qos.core.plan.diff import Operation
from vff_qos.core.plan.objects import IFB_TXQLEN, Mq, SharedClass, SharedLeaf, Tree
from vff_qos.core.settings import Settings
from vff_qos.kernel.packed.tc import ClassKey, Tc, add_class
from vff_qos.kernel.route import add_clsact

from .rows import Report
from .world import run

_DEVICE = "t0"
_QUEUES = 2
_ETH_P_IP = 0x0800
#: 100 bytes to somebody.
_FRAME = bytes.fromhex("020000000002 020000000001 0800 45").ljust(100, b"\0")
_BATCH = 256
#: Never reached, nor borrowed from others: what is measured is the way through.
_LIMIT_BPS = 10_000_000_000
_SO_MARK, _SO_PRIORITY = 36, 12


def measure(report: Report, seconds: float, runs: int) -> None:
    """Rows in millions of packets a second.  Call it in a namespace of its own."""
    cases: dict[str, Callable[[], Settings]] = {
        "none": lambda: _device(0),
        "one": lambda: _device(1),
        "two": lambda: _device(2),
    }
    for senders in (1, 2):
        report.progress(f"packets of {senders} senders, without a tree, through one, through two")
        found: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(runs):
            for case, make in cases.items():
                found[case].append(_rate(make(), senders, seconds) / 1e6)
        for case, rates in found.items():
            report.add(f"trees.mpps.senders_{senders}.{case}", rates, "M/s")
        names = [f"trees.mpps.senders_{senders}.{case}" for case in ("two", "one", "none")]
        report.ratio(f"trees.two_to_one.senders_{senders}", names[0], names[1])
        report.ratio(f"trees.two_to_none.senders_{senders}", names[0], names[2])


def _device(trees: int) -> Settings:
    """A device with so many trees, and a class for each sender."""
    settings = make_device(_DEVICE, trees)
    if trees:
        index, tc = socket.if_nametoindex(_DEVICE), Tc()
        params = user_class(_LIMIT_BPS, guaranteed_bps=_LIMIT_BPS)
        for minor in _minors():
            key = ClassKey(index, settings.layout.tree(minor), minor)
            tc.apply(add_class(key, CEIL_MINOR, params, settings.leaf))
        tc.close()
    return settings


def make_device(name: str, trees: int) -> Settings:
    """A device of two queues that swallows what it is given, with so many trees; in the place of
    one of that name."""
    if name in {there for _index, there in socket.if_nameindex()}:
        run("ip", "link", "del", name)
    # An IFB frees what was not redirected to it: nothing costs less after a qdisc.
    run("ip", "link", "add", name, "numtxqueues", str(_QUEUES), "type", "ifb")
    run("ip", "link", "set", name, "up", "txqueuelen", str(IFB_TXQLEN))
    # The leaf that every kernel has.
    settings = replace(Settings(), wan=name, leaf="pfifo", trees=max(trees, 1))
    if not trees:
        run("tc", "qdisc", "replace", "dev", name, "root", "noqueue")
        return settings
    ours = (Mq, Tree, SharedClass, SharedLeaf)
    wanted = [
        Operation("add", item)
        for item in desired(settings, name)
        if isinstance(item, ours) and item.dev == name
    ]
    carry_out(settings, wanted)
    if trees > 1:
        with IPRoute() as ipr:
            add_clsact(ipr, socket.if_nametoindex(name))
        lead_packets(name)
    return settings


def _minors() -> range:
    """Of the senders: with two trees one in each."""
    return range(FIRST_USER_MINOR, FIRST_USER_MINOR + _QUEUES)


def _rate(settings: Settings, senders: int, seconds: float) -> float:
    """Packets a second of all senders."""
    tie, pids = die_with_parent(), []
    counters = mmap.mmap(-1, 8 * senders)
    for number in range(senders):
        pid = os.fork()
        if pid == 0:
            tie()
            os.sched_setaffinity(0, {number % (os.cpu_count() or 1)})
            _send(settings.layout.mark(_minors()[number]), counters, 8 * number)
        pids.append(pid)
    time.sleep(0.3)
    before, began = _sent(counters), time.monotonic()
    time.sleep(seconds)
    found = (_sent(counters) - before) / (time.monotonic() - began)
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return found


def _sent(counters: mmap.mmap) -> int:
    """What the qdisc has taken: a full leaf refuses, and who sends is told."""
    return sum(struct.unpack(f"={len(counters) // 8}Q", counters[:]))


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def _send(mark: int, counters: mmap.mmap, place: int) -> None:
    """Send for ever, by hundreds: Python's own time must not be what is measured."""
    # Whole frames: the less a packet costs before the qdisc, the more of it is the qdisc's.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    sock.setsockopt(socket.SOL_SOCKET, _SO_PRIORITY, mark)
    sock.bind((_DEVICE, _ETH_P_IP))
    part = _IoVec(_FRAME, len(_FRAME))
    messages = (_Message * _BATCH)()
    for message in messages:
        message.iov, message.iov_count = ctypes.pointer(part), 1
    send = ctypes.CDLL(None, use_errno=True).sendmmsg
    sent = 0
    while True:
        # -1: the leaf is full.
        sent += max(0, send(sock.fileno(), messages, _BATCH, 0))
        struct.pack_into("=Q", counters, place, sent)
