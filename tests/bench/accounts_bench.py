"""Accounts: what a round costs, and how large the state grows."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path

from vff_qos.core.accounts import DOWNLOAD, UPLOAD
from vff_qos.state import State

from .rows import Report

_USERS, _HOURS = 10_000, 24
_START_S = 1_780_012_800.0
#: In a busy hour of a user, about what is moved at 50 Mbit/s in two and a half minutes.
_BYTES = 100_000_000


def measure(report: Report) -> None:
    """Rounds of 10,000 users who all move, or none; the bytes that a user's hour and day take."""
    report.progress(f"accounts of {_USERS:,} users through {_HOURS} hours")
    names = {minor: (f"user{minor}@example.com",) for minor in range(2, _USERS + 2)}
    with tempfile.TemporaryDirectory(prefix="vff-qos-bench-") as directory:
        state = State(directory)
        busy, idle = [], []

        def round_(hour: float, count: int) -> float:
            sent = {minor: count + minor * 4_099 for minor in names} if count else {}
            start = time.thread_time()
            for direction in (UPLOAD, DOWNLOAD):
                state.accounts.book(direction, sent, names.__getitem__, _START_S + hour * 3_600)
            return (time.thread_time() - start) * 1e3

        round_(0, 0)
        for hour in range(_HOURS):
            busy.append(round_(hour, (hour + 1) * _BYTES))
            idle.append(round_(hour, (hour + 1) * _BYTES))
        state.close()
        report.add(f"accounts.round_ms.busy_{_USERS}", busy, "ms")
        report.add(f"accounts.round_ms.idle_{_USERS}", idle, "ms")
        found = _sizes(Path(directory) / "state.db")
        report.add("accounts.bytes_per_user_hour", [found["hours"] / _USERS / _HOURS], "B")
        report.add("accounts.bytes_per_user_day", [found["days"] / _USERS], "B")


def _sizes(path: Path) -> dict[str, int]:
    """Bytes by table: pages of the file with that table alone."""
    database = sqlite3.connect(path)
    page: int = database.execute("PRAGMA page_size").fetchone()[0]
    sizes = {}
    for table in ("hours", "days"):
        database.execute("VACUUM")
        before: int = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"DELETE FROM {table}")
        database.commit()
        database.execute("VACUUM")
        after: int = database.execute("PRAGMA page_count").fetchone()[0]
        sizes[table] = (before - after) * page
    database.close()
    return sizes
