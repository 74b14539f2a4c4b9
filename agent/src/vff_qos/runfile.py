"""What processes tell each other in the run directory, both ends.

The follower how it is (``follow.json``) and when it was told of whom (``named``), ``report`` how it
went (``report.json``), ``doctor --keep`` what it found (``doctor.json``).
"""

from __future__ import annotations

import json
import os
import struct
import time
from typing import Any

from .core.health.delivery import Delivery
from .core.health.report import Report
from .replacing import replacing

_FILE, _DELIVERY, _DIAGNOSIS = "follow.json", "report.json", "doctor.json"
#: Four bytes for each minor, whole seconds of CLOCK_MONOTONIC, 0 for "not since the agent's start":
#: so that ``explain`` can say it and the agent keeps neither text nor a line for each connection.
_LAST_NAMED = "named"
_U32 = struct.Struct("=I")
#: How often the follower writes it.
WRITE_S = 5.0
#: A follower that works does not miss three in a row.
_STALE_S = 3 * WRITE_S


def write_report(run_dir: str, report: Report) -> None:
    """Replace the report at once.  Raises OSError."""
    text = json.dumps(report.to_json())  # json.dump takes twice as long
    replace_file(run_dir, _FILE, text.encode())


def replace_file(run_dir: str, name: str, data: bytes | memoryview[int]) -> None:
    """Whoever reads it sees the old or the new one, whole.  Raises OSError."""
    # For the page, whose account is in the agent's group.
    with replacing(os.path.join(run_dir, name), 0o640) as file:
        file.write(data)


def read_report(run_dir: str) -> Report | None:
    """The report of the follower that runs; None if none does."""
    try:
        with open(os.path.join(run_dir, _FILE), encoding="utf-8") as file:
            report = Report.from_json(json.load(file))
    except FileNotFoundError:
        return None
    if time.time() - report.written > _STALE_S or not _follows(report.pid):
        return None
    return report


def _follows(pid: int) -> bool:
    """Whether a process is a follower, as far as we may see it.

    Where proc(5) hides processes that have more capabilities than we do (ProtectProc= of
    systemd.exec(5), hidepid=), it is enough that there is one.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"\0follow\0" in file.read()
    except (FileNotFoundError, ProcessLookupError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_last_named(run_dir: str, named: memoryview[int]) -> None:
    """When each minor's user was named last, by CLOCK_MONOTONIC.  Raises OSError."""
    replace_file(run_dir, _LAST_NAMED, named)


def read_last_named(run_dir: str, minor: int) -> float | None:
    """The same of one minor, in seconds since the epoch; None if it is not known."""
    try:
        with open(os.path.join(run_dir, _LAST_NAMED), "rb") as file:
            file.seek(minor * _U32.size)
            data = file.read(_U32.size)
    except FileNotFoundError:
        return None
    seconds = _U32.unpack(data)[0] if len(data) == _U32.size else 0
    return time.time() - time.monotonic() + seconds if seconds else None


def write_delivery(run_dir: str, delivery: Delivery) -> None:
    """How a report of usage went.  Raises OSError."""
    replace_file(run_dir, _DELIVERY, json.dumps(delivery._asdict()).encode())


def read_delivery(run_dir: str) -> Delivery | None:
    """The same; None if nothing was reported since the node was started."""
    try:
        with open(os.path.join(run_dir, _DELIVERY), encoding="utf-8") as file:
            return Delivery(**json.load(file))
    except FileNotFoundError:
        return None


def write_diagnosis(run_dir: str, found: dict[str, Any]) -> None:
    """What ``doctor`` found, with ``time``.  Raises OSError."""
    replace_file(run_dir, _DIAGNOSIS, json.dumps(found).encode())


def read_diagnosis_file(run_dir: str) -> dict[str, Any] | None:
    """The same; None if nobody has looked since the node was started."""
    try:
        with open(os.path.join(run_dir, _DIAGNOSIS), encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return None
