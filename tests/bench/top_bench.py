"""``vff-qos top`` on a terminal: until its table stands, and what it takes then."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from pathlib import Path

from .rows import Report
from .world import Agent

_SIZE = struct.pack("HHHH", 40, 120, 0, 0)
#: The first looks are over after so long.
_SETTLED_S = 8.0


def measure(report: Report, follower: Agent, users: int, runs: int, seconds: float) -> None:
    """Start, and share of a core, with so many users on the node."""
    report.progress(f"top with {users:,} users: {runs} starts, then {seconds:.0f} s")
    starts, cpu = [], []
    for number in range(runs):
        start = time.perf_counter()
        pid, terminal = _open(follower)
        shown = b""
        while b"@x" not in shown:
            shown += os.read(terminal, 65_536)
        starts.append(time.perf_counter() - start)
        if number == runs - 1:
            _drain(terminal, _SETTLED_S)
            used, start = cpu_s(pid), time.perf_counter()
            _drain(terminal, seconds)
            cpu.append(100 * (cpu_s(pid) - used) / (time.perf_counter() - start))
        os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)
    report.add(f"top.start_s.users_{users}", starts, "s")
    report.add(f"top.cpu_pct.users_{users}", cpu, "%")


def _open(follower: Agent) -> tuple[int, int]:
    command = follower.command("top")
    environment = follower.environment | {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, _SIZE)
        os.execvpe(command[0], command, environment)
    return pid, terminal


def _drain(terminal: int, seconds: float) -> None:
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        if select.select([terminal], [], [], left)[0]:
            os.read(terminal, 65_536)


def cpu_s(pid: int) -> float:
    """Of all threads; see proc_pid_stat(5)."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
