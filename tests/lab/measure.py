"""Move traffic for all users at once and tell what each of them got."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import engine, network
from .internet import Internet
from .node import die_with_parent
from .progress import LabError, say
from .users import Device, Direction, User

ECHOES_PER_S = 20  # of all devices by turns: more is load for an emulated node
UDP_PAYLOAD = 1200  # fits into the tunnel's datagrams at MTU 1500
FLOW_SHARE = 0.01  # a connection with less than this of its user's bytes is not a data flow


@dataclass(frozen=True)
class Measurement:
    """What one user got in one direction. Rates are bit/s of wire bytes (Ethernet frames)."""

    user: User
    direction: Direction
    measured_bps: float
    goodput_bps: float  # TCP payload at the receiving application; 0 for UDP
    flows: int  # connections between client and node that carried the data
    ping_ms: float  # median round trip on another connection of the user, under load
    ping_idle_ms: float  # the same before the load began
    series: tuple[tuple[float, float], ...]  # (seconds since the first sample, bit/s)

    @property
    def limit_bps(self) -> int | None:
        return self.user.limit(self.direction)

    @property
    def error_pct(self) -> float | None:
        """How far the rate is from the limit; None without a limit."""
        limit = self.limit_bps
        return None if limit is None else 100 * (self.measured_bps - limit) / limit


@dataclass(frozen=True)
class Report:
    """A finished run: a measurement for each user, in their order.

    `clock` is the time (seconds since 1970) of the first sample, to place events in `series`.
    """

    measurements: tuple[Measurement, ...]
    clock: float

    def __getitem__(self, email: str) -> Measurement:
        return next(m for m in self.measurements if m.user.email == email)


class Run:
    """Traffic in the background; `result()` waits for it. Made by `Lab.start_traffic`."""

    def __init__(
        self,
        internet: Internet,
        folder: Path,
        devices: Sequence[Device],
        direction: Direction,
        seconds: float,
        *,
        interval_s: float,
        idle_s: float,
        warmup_s: float,
    ) -> None:
        """`folder` is deleted first, and holds the logs of iperf3 then."""
        if not devices:
            raise LabError("traffic of nobody")
        self._devices, self._direction, self._folder = devices, direction, folder
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        total_s = idle_s + warmup_s + seconds
        job = {
            "direction": direction,
            "folder": str(folder),
            "inet": internet.namespace("inet"),
            "clients": internet.namespace("clients"),
            "target": network.TARGET_IPV4,
            "echo_port": engine.ECHO_PORT,
            "echo_interval_s": len(devices) / ECHOES_PER_S,
            "interval_s": interval_s,
            "idle_s": idle_s,
            "warmup_s": warmup_s,
            "seconds": seconds,
            "devices": [_device(device, direction, total_s) for device in devices],
        }
        self._timeout_s = total_s + 120
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lab.traffic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            preexec_fn=die_with_parent(),
        )
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job))
        self._process.stdin.close()
        self._process.stdin = None

    def finish(self) -> Report:
        """End the traffic now; what was seen up to here is the result."""
        (self._folder / "enough").touch()
        return self.result()

    def result(self) -> Report:
        """Wait for the end. Raises LabError if the traffic could not be moved."""
        try:
            output, errors = self._process.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise LabError(f"traffic did not end within {self._timeout_s:.0f} s") from error
        if self._process.returncode:
            raise LabError("no traffic: " + " | ".join(errors.strip().splitlines()[-3:]))
        if errors:
            say(errors.strip())
        seen = json.loads(output)
        if seen["errors"]:
            raise LabError("traffic stopped early: " + "; ".join(seen["errors"]))
        return report(self._devices, self._direction, seen)


def report(devices: Sequence[Device], direction: Direction, seen: dict[str, Any]) -> Report:
    """Turn the guest's observations into measurements."""
    users = list(dict.fromkeys(device.user for device in devices))
    numbers = {u: {d.number for d in devices if d.user == u} for u in users}
    return Report(
        tuple(_measurement(user, direction, numbers[user], seen) for user in users),
        seen["clock"] + seen["samples"][0][0],
    )


def _measurement(
    user: User, direction: Direction, numbers: set[int], seen: dict[str, Any]
) -> Measurement:
    def total(counters: dict[str, int]) -> int:
        return sum(counters[str(number)] for number in numbers)

    samples = [(at, total(counters)) for at, counters in seen["samples"]]
    (first_at, first), (last_at, last) = samples[0], samples[-1]
    series = tuple(
        (later[0] - first_at, 8 * (later[1] - sooner[1]) / (later[0] - sooner[0]))
        for sooner, later in pairwise(samples)
    )
    (payload_from, before), (payload_to, after) = seen["payload"]
    pings = [(float(at), float(took)) for at, n, took in seen["echoes"] if int(n) in numbers]
    column = 1 if direction == "download" else 2
    carried = [flow[column] for flow in seen["flows"] if flow[0] in numbers]
    flows = sum(1 for size in carried if size > FLOW_SHARE * sum(carried))
    return Measurement(
        user=user,
        direction=direction,
        measured_bps=8 * (last - first) / (last_at - first_at),
        goodput_bps=8 * (total(after) - total(before)) / (payload_to - payload_from),
        flows=flows or len(numbers) * user.flows,  # datagrams have no socket of each connection
        ping_ms=_median_ms([took for at, took in pings if first_at <= at <= last_at]),
        ping_idle_ms=_median_ms([took for at, took in pings if at < seen["load_at"]]),
        series=series,
    )


def _median_ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds) if seconds else float("nan")


def _udp_outside(user: User) -> bool:
    """Do the user's datagrams travel as datagrams between client and node?"""
    return user.udp and user.protocol == "shadowsocks"


def _device(device: Device, direction: Direction, seconds: float) -> dict[str, Any]:
    return {
        "number": device.number,
        "router_port": device.router_port,
        "echo_port": device.echo_port,
        "address": device.ipv6 if device.user.ipv6 else device.ipv4,
        "target_port": device.target_port,
        "udp_outside": _udp_outside(device.user),
        "iperf": _iperf(device, direction, seconds),
    }


def _iperf(device: Device, direction: Direction, seconds: float) -> list[str]:
    """Arguments of the device's iperf3 client; it is stopped when the measurement is over.

    None if the user is only there for round trips (no flows).
    """
    user = device.user
    if not user.flows:
        return []
    rate = user.source_rate(direction)
    arguments = ["-c", "127.0.0.1", "-p", str(device.target_port), "-P", str(user.flows)]
    arguments += ["-t", str(round(seconds) + 600), "-i", "0"]
    if direction == "download":
        arguments.append("-R")
    if user.udp:
        arguments += ["-u", "-l", str(UDP_PAYLOAD)]
    if rate is not None:
        # iperf3 wants the rate of each flow; its timer of 1 ms costs more than the traffic.
        arguments += ["-b", str(rate // user.flows), "--pacing-timer", "10000"]
        if not user.udp:
            # It sends whole blocks: small ones, or a slow flow comes in bursts of a second.
            block = int(rate / user.flows / 8 * user.block_s)
            arguments += ["-l", str(min(max(block, 1024), 128 * 1024))]
    return arguments
