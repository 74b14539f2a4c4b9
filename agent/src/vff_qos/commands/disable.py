"""``vff-qos disable`` and ``enable``: the whole kill switch of a node, by hand.

``suspend`` lifts the limits in the kernel; ``disable`` also keeps them lifted: the units are
stopped and masked, so that a reboot brings nothing back, and a file says who did it, so that
nothing else undoes it unasked.
"""

from __future__ import annotations

import os
import subprocess
import time

from ..core import events
from ..disabled import Record, read_record, write_record
from ..errors import QosError
from ..render import local_time
from .node import Node
from .suspend import lift_limits

#: In the order in which they are started.
UNITS = (
    "vff-qos-webhook.socket",
    "vff-qos-bootstrap.service",
    "vff-qos-follow.service",
    "vff-qos-gc.service",
    "vff-qos-gc.timer",
    "vff-qos-report.service",
    "vff-qos-report.timer",
)
#: Timers start them.
_NOT_BY_ITSELF = ("vff-qos-gc.service", "vff-qos-report.service")


def disable(node: Node, why: str) -> str:
    """Lift all limits and keep them lifted; returns what was done.

    Raises QosError if that is not so at the end; what could be done is done then.
    """
    flows = lift_limits(node)
    problems = []
    record = read_record(node.paths)
    if record is None:
        record = Record(node.user, local_time(time.time()), why)
        try:
            write_record(node.paths, record)
        except OSError as error:
            problems.append(f"{node.paths.disabled}: {os.strerror(error.errno or 0)}")
    problems += _systemctl("mask", "--now", *_installed())
    if problems:
        raise QosError(f"the limits are lifted, but may come back: {'; '.join(problems)}")
    node.journal.tell(events.DISABLED, order=str(record), who=record.who, why=record.why)
    lifted = "no limit was in force" if flows is None else f"{flows} flows are unlimited now"
    return f"{record}: {lifted}; the units are stopped and masked until 'vff-qos enable'"


def enable(node: Node) -> str:
    """Bring the limits back and keep them; returns what was done.  Raises QosError."""
    # What cannot work must not cost anybody the limits that others still have.
    _ = node.settings, node.written_policy
    units = _installed()
    if problems := _systemctl("unmask", *units):
        raise QosError("; ".join(problems))
    record = read_record(node.paths)
    try:
        if record:
            os.unlink(node.paths.disabled)
    except OSError as error:
        raise QosError(f"{node.paths.disabled}: {os.strerror(error.errno or 0)}") from error
    problems = _systemctl("reset-failed", *units)
    # It only says "done" where it has run before, and the limits were lifted since.
    problems += _systemctl("restart", "vff-qos-bootstrap.service")
    problems += _systemctl("start", *(unit for unit in units if unit not in _NOT_BY_ITSELF))
    if problems:
        raise QosError("; ".join(problems))
    node.journal.tell(events.ENABLED, who=node.user)
    return "the units run and the limits are in force" + (f"; it was {record}" if record else "")


def _installed() -> list[str]:
    """Our units that this node has.  Raises QosError."""
    listed = _run("list-unit-files", "--no-legend", "--no-pager", "--plain", "vff-qos-*")
    if listed.returncode != 0:
        raise QosError(f"systemctl list-unit-files: {' '.join(listed.stderr.split())}")
    known = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    if not known:
        raise QosError("there are no units vff-qos-*: bring the node to qos_state present first")
    return [unit for unit in UNITS if unit in known]


def _systemctl(verb: str, *words: str) -> list[str]:
    """Do it; returns one sentence if systemd says no."""
    done = _run(verb, *words)
    if done.returncode == 0:
        return []
    said = " ".join(done.stderr.split()) or f"ended with {done.returncode}"
    return [f"systemctl {verb}: {said}"]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", *words], capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError as error:
        raise QosError("there is no systemctl; stop the agent by hand") from error
    except subprocess.TimeoutExpired as error:
        raise QosError(f"systemctl {words[0]} did not end within 120 s") from error
