"""Metrics: what a scrape costs, by the timer's command and by the page's server."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from vff_qos.core.accounts import DOWNLOAD, UPLOAD
from vff_qos.state import State

from .rows import Report
from .world import Agent, wait_until

_TOP, _ALL = 20, 65_000
_ADDRESS = "127.0.0.1:9470"
#: In the last hour of a user.
_BYTES = 100_000_000
#: Runs a command and prints seconds, CPU seconds and peak KiB.  A process's peak includes that of
#: whoever forked it, so that must be a small one, and not the bench.
_MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def measure(report: Report, follower: Agent, users: int, runs: int) -> None:
    """Of an agent with so many users, who all have moved something."""
    report.progress(f"metrics of {users:,} users: {runs} scrapes each of the top and of all")
    with tempfile.TemporaryDirectory(prefix="vff-qos-bench-") as made:
        directory = Path(made)
        _book(follower, directory)
        for name, shown in (("top", _TOP), ("all", _ALL)):
            settings = directory / "settings.yml"
            text = (follower.etc / "settings.yml").read_text()
            settings.write_text(f"{text}\nmetrics_users: {shown}\nweb_bind: {_ADDRESS}\n")
            rest = ["--settings", str(settings), "--state-dir", str(directory)]
            _textfile(report, follower, rest, f"{name}_of_{users}", runs)
            _http(report, follower, rest, f"{name}_of_{users}", runs)


def _book(follower: Agent, directory: Path) -> None:
    """The agent's state with accounts in it; the agent itself must not find them."""
    source = sqlite3.connect(follower.directory / "state" / "state.db")
    copy = sqlite3.connect(directory / "state.db")
    source.backup(copy)
    source.close()
    copy.close()
    state = State(str(directory))
    names = {owner.minor: (owner.key,) for owner in state.owners() if owner.is_user}
    sent = {minor: _BYTES + minor * 4_099 for minor in names}
    for direction in (UPLOAD, DOWNLOAD):
        state.accounts.book(direction, dict.fromkeys(sent, 0), names.__getitem__, time.time())
        state.accounts.book(direction, sent, names.__getitem__, time.time())
    state.close()


def _textfile(report: Report, follower: Agent, rest: list[str], name: str, runs: int) -> None:
    file = follower.directory / "vff_qos.prom"
    command = [*follower.command("metrics", "--textfile", str(file)), *rest]
    spent, cpu, rss = [], [], []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *command], env=follower.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"bench: vff-qos metrics: {done.stderr}")
        seconds, used_s, peak_kib = map(float, done.stdout.split())
        spent.append(seconds * 1e3)
        cpu.append(used_s * 1e3)
        rss.append(peak_kib / 1024)
    report.add(f"metrics.textfile_ms.{name}", spent, "ms")
    report.add(f"metrics.textfile_cpu_ms.{name}", cpu, "ms")
    report.add(f"metrics.textfile_rss_mib.{name}", rss, "MiB")
    report.add(f"metrics.size_kb.{name}", [file.stat().st_size / 1e3], "kB")


def _http(report: Report, follower: Agent, rest: list[str], name: str, runs: int) -> None:
    process = subprocess.Popen([*follower.command("web"), *rest], env=follower.environment)
    try:
        wait_until("the page", lambda: _is_there(process), 30)
        spent = []
        for _ in range(runs):
            start = time.perf_counter()
            with urllib.request.urlopen(f"http://{_ADDRESS}/metrics", timeout=60) as answer:
                answer.read()
            spent.append((time.perf_counter() - start) * 1e3)
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
        report.add(f"metrics.http_ms.{name}", spent, "ms")
        report.add(f"metrics.http_peak_rss_mib.{name}", [int(peak) / 1024], "MiB")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _is_there(process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise SystemExit(f"bench: vff-qos web ended with {process.returncode}")
    try:
        with urllib.request.urlopen(f"http://{_ADDRESS}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
