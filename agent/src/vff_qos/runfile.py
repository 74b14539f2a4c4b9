"""What the follower tells other processes: ``follow.json`` in the run directory, both ends."""

from __future__ import annotations

import json
import os
import time

from .core.health.report import Report

_FILE = "follow.json"
#: How often the follower writes it.
WRITE_S = 5.0
#: A follower that works does not miss three in a row.
_STALE_S = 3 * WRITE_S


def write_report(run_dir: str, report: Report) -> None:
    """Replace the report at once.  Raises OSError."""
    path = os.path.join(run_dir, _FILE)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(json.dumps(report.to_json()))  # json.dump takes twice as long
    os.replace(path + ".new", path)


def read_report(run_dir: str) -> Report | None:
    """The report of the follower that runs; None if none does."""
    try:
        with open(os.path.join(run_dir, _FILE), encoding="utf-8") as file:
            report = Report.from_json(json.load(file))
        if time.time() - report.written > _STALE_S:
            return None
        with open(f"/proc/{report.pid}/cmdline", "rb") as file:
            return report if b"\0follow\0" in file.read() else None
    except (FileNotFoundError, ProcessLookupError):
        return None
