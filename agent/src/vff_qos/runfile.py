"""What the follower tells other processes: ``follow.json`` in the run directory, both ends."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

_FILE = "follow.json"
#: How often the follower writes it.
WRITE_S = 5.0
#: A follower that works does not miss three in a row.
_STALE_S = 3 * WRITE_S


@dataclass(frozen=True)
class Report:
    """What a follower does.  ``written`` in seconds since the epoch."""

    pid: int
    written: float
    #: `config.policy_stamp` of the policy in force; empty if that is the last good one.
    policy: list[list[object]]
    #: How often the kernel's objects were repaired.
    repairs: int
    #: What became of the claims, by name.
    counts: dict[str, int | str]
    #: Lines of the source by what they were.
    log: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts stand beside the rest."""
        data = asdict(self)
        return {**data.pop("counts"), **data}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """A report as ``to_json`` gave it."""
        names = ("pid", "written", "policy", "repairs", "log")
        rest = {name: number for name, number in data.items() if name not in names}
        return cls(**{name: data[name] for name in names}, counts=rest)


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
