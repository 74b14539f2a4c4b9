"""What users get where there are two trees, natively: limits on both queues at once, shares within
a queue, and how much too much one has who moves from one to the other.

Packets find queue and class as in `trees_bench`; what leaves a class is what the kernel counts.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import closing

from lab.node import die_with_parent
from vff_qos.core.htb import (
    CEIL_MINOR,
    FIRST_USER_MINOR,
    ROOT_MINOR,
    NodeCapacity,
    shared_class,
    user_class,
)
from vff_qos.core.owners import QUARANTINE, Owner
from vff_qos.core.policy.parse import parse_policy
from vff_qos.core.settings import Settings
from vff_qos.kernel.packed.tc import ClassKey, Tc, add_class, change_class
from vff_qos.shaping import Classes

from .rows import Report

_SO_MARK, _SO_PRIORITY = 36, 12
_ETH_P_IP = 0x0800
_FRAME = bytes.fromhex("020000000002 020000000001 0800 45").ljust(1_514, b"\0")
#: What the users of a tree share: so much as Python can fill.
_TREE_BPS = 200_000_000
#: Five users of each weight in each tree.
_WEIGHTS = (1, 2) * 5
_LIMITS_BPS = (5_000_000, 20_000_000, 100_000_000)
_MOVED_BPS = (10_000_000, 100_000_000)

Make = Callable[[str], Settings]


def measure(report: Report, make: Make, seconds: float, runs: int) -> None:
    """``make`` gives a device of a name two trees."""
    report.progress("users on two queues at once, each at the limit")
    for limit_bps in _LIMITS_BPS:
        errors = [error for _ in range(runs) for error in _limits(make("t0"), limit_bps, seconds)]
        report.add(f"trees.limit_error_pct.mbit_{limit_bps // 1_000_000}", errors, "%")
    report.progress("users of two weights fill each of two queues")
    worst = [_worst_share_pct(make("t0"), 5 * seconds) for _ in range(runs)]
    report.add("trees.share_worst_pct", worst, "%")
    for limit_bps in _MOVED_BPS:
        report.progress(f"a user of {limit_bps // 1_000_000} Mbit/s moves to the other queue")
        excess = [_excess_ms(make, limit_bps) for _ in range(runs)]
        report.add(f"trees.move_excess_ms.mbit_{limit_bps // 1_000_000}", excess, "ms")


class _Sender:
    """Keeps the classes of users full, in a process of its own; ends with the block."""

    def __init__(self, marks: list[int], core: int) -> None:
        self._marks = mmap.mmap(-1, 4 * len(marks))
        self._count, self._core = len(marks), core
        self.mark(marks)

    def mark(self, marks: list[int]) -> None:
        """What is sent from now on has these marks."""
        self._marks[:] = struct.pack(f"={self._count}I", *marks)

    def __enter__(self) -> _Sender:
        tie = die_with_parent()
        self._pid = os.fork()
        if self._pid == 0:
            tie()
            os.sched_setaffinity(0, {self._core % (os.cpu_count() or 1)})
            self._send()
        return self

    def __exit__(self, *_error: object) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)

    def _send(self) -> None:
        socks, given = [], [0] * self._count
        for _ in given:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
            # The queue is what is full, not the socket.
            sock.setsockopt(socket.SOL_SOCKET, 32, 1 << 24)  # SO_SNDBUFFORCE
            sock.bind(("t0", _ETH_P_IP))
            socks.append(sock)
        while True:
            wanted = struct.unpack(f"={self._count}I", self._marks[:])
            for number, sock in enumerate(socks):
                if given[number] != wanted[number]:
                    given[number] = wanted[number]
                    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, given[number])
                    sock.setsockopt(socket.SOL_SOCKET, _SO_PRIORITY, given[number])
                try:
                    while True:
                        sock.send(_FRAME)
                except OSError:
                    continue  # it is full
            time.sleep(0.001)


def _sent(settings: Settings) -> dict[int, int]:
    """Bytes that have left the classes of the device, by minor."""
    with closing(Tc()) as tc:
        return dict(tc.sent_bytes(socket.if_nametoindex("t0"), *settings.layout))


def _limits(settings: Settings, limit_bps: int, seconds: float) -> list[float]:
    """How far each of two users, one in each tree, is from the limit, in per cent."""
    minors = (FIRST_USER_MINOR, FIRST_USER_MINOR + 1)
    _add(settings, dict.fromkeys(minors, 1), limit_bps)
    marks = [settings.layout.mark(minor) for minor in minors]
    with _Sender(marks[:1], 0), _Sender(marks[1:], 1):
        rates = _rates(settings, seconds)
    return [abs(100 * (rates[minor] / limit_bps - 1)) for minor in minors]


def _worst_share_pct(settings: Settings, seconds: float) -> float:
    """How far a user of a full tree is at most from the share that the weight gives."""
    layout = settings.layout
    users: list[dict[int, int]] = [{}, {}]
    for number, weight in enumerate(_WEIGHTS):
        for tree in range(layout.trees):
            users[tree][FIRST_USER_MINOR + layout.trees * number + tree] = weight
    for tree, weights in enumerate(users):
        _add(settings, weights, settings.tree_ceil_bps)
        key = ClassKey(socket.if_nametoindex("t0"), layout.majors[tree], CEIL_MINOR)
        with closing(Tc()) as tc:
            tc.apply([change_class(key, ROOT_MINOR, shared_class(_TREE_BPS))])
    senders = [_Sender([layout.mark(minor) for minor in own], n) for n, own in enumerate(users)]
    with senders[0], senders[1]:
        rates = _rates(settings, seconds)
    worst = 0.0
    for weights in users:
        whole = sum(rates[minor] for minor in weights) / sum(weights.values())
        worst = max(worst, *(abs(100 * (rates[m] / whole / w - 1)) for m, w in weights.items()))
    return worst


def _add(settings: Settings, weights: Mapping[int, int], limit_bps: int) -> None:
    """Classes of users with this limit, as the agent makes them."""
    node = NodeCapacity(settings.tree_ceil_bps, max(_WEIGHTS))
    index = socket.if_nametoindex("t0")
    with closing(Tc()) as tc:
        for minor, weight in weights.items():
            key = ClassKey(index, settings.layout.tree(minor), minor)
            params = user_class(limit_bps, weight, node=node)
            tc.apply(add_class(key, CEIL_MINOR, params, settings.leaf))


def _rates(settings: Settings, seconds: float) -> dict[int, float]:
    """What leaves each class, in bit/s."""
    time.sleep(1.0)
    began, before = time.monotonic(), _sent(settings)
    time.sleep(seconds)
    ended, after = time.monotonic(), _sent(settings)
    return {minor: 8 * (after[minor] - before[minor]) / (ended - began) for minor in before}


def _excess_ms(make: Make, limit_bps: int) -> float:
    """How much more than the limit a user has who moves while the class is full, as the time that
    the limit takes for it.  The steps are those of `follower.balancing`."""
    settings = make("t0")
    make("t1")  # in the place of the IFB
    text = f"default: {{upload: {limit_bps}bit, download: {limit_bps}bit}}".encode()
    devices = socket.if_nametoindex("t1"), socket.if_nametoindex("t0")
    before, after = FIRST_USER_MINOR, FIRST_USER_MINOR + 1
    with closing(Tc()) as tc:
        classes = Classes(settings, parse_policy(text, "policy"), tc, devices)
        refused = classes.ensure([Owner("user", before)])
        with _Sender([settings.layout.mark(before)], 0) as sender:
            time.sleep(1.0)
            began, sent = time.monotonic(), _sent(settings)[before]
            time.sleep(0.5)
            refused += classes.ensure([Owner("user", after)])
            sender.mark([settings.layout.mark(after)])
            time.sleep(0.002)  # all that is sent has the new one
            left = Owner("\2", before, QUARANTINE)
            refused += classes.ensure([left])
            classes.empty([left])
            time.sleep(0.5)
            ended, now = time.monotonic(), _sent(settings)
    if refused:
        raise SystemExit(f"bench: the classes of a user who moves: {refused[0]}")
    passed = now[before] + now[after] - sent
    return 1e3 * (8 * passed / limit_bps - (ended - began))
