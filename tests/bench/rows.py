"""Results: medians over runs, one table, one JSON file with fixed names."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.machine import MAX_STOLEN_PCT, MIN_IDLE_PCT, Load

_LOOK_S = 0.5


class Report:
    """Rows in the order in which they were measured."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._load = self._step_load = Load()
        self._idle_pct = 100.0
        self._prefix = ""

    def add(self, name: str, runs: list[float], unit: str, counted: bool = False) -> float:
        """Record a row, print it, return its median.  No run, or no number, ends the bench.

        ``counted``: instructions were, which are as many on a busy machine.

        A row of a starved machine says so, with how busy it was; a percentage above 100 of such a
        machine tells of nothing else, and only its runs are kept.
        """
        return self._record(name, runs, unit, {} if counted else self._starved())

    def _record(self, name: str, runs: list[float], unit: str, starved: dict[str, Any]) -> float:
        if not runs or not all(map(math.isfinite, runs)):
            raise SystemExit(f"bench: {name} was not measured: {runs}")
        value = statistics.median(runs)
        row: dict[str, Any] = {"name": self._prefix + name, "value": value, "unit": unit}
        row["runs"] = runs
        shown = f"{value:>14,.4g}"
        spread = f"{min(runs):,.4g} to {max(runs):,.4g}" if len(runs) > 1 else ""
        if starved:
            row |= starved
            spread = f"{spread} starved".strip()
            if unit == "%" and max(map(abs, runs)) > 100:
                row["value"], shown, spread = None, f"{'starved':>14}", ""
        self.rows.append(row)
        print(f"  {row['name']:<44} {shown} {unit:<9} {spread}".rstrip(), flush=True)
        return value

    def ratio(self, name: str, of: str, to: str) -> None:
        """Record how many times the row ``to`` the row ``of`` is, both of this report.

        There is no such row where one of them has no value, or ``to`` is zero.
        """
        rows = {row["name"]: row for row in self.rows}
        value, by = rows[of]["value"], rows[to]["value"]
        if value is not None and by:
            starved = any("starved" in rows[one] for one in (of, to))
            self._record(name, [value / by], "x", {"starved": True} if starved else {})

    def ratios(self, prefix: str) -> None:
        """A row of `ratio` for each that there is with the prefix and without."""
        names = {row["name"] for row in self.rows}
        for name in [row["name"] for row in self.rows]:
            if prefix + name in names and not name.startswith("machine."):
                self.ratio(f"ratio.{name}", name, prefix + name)

    @contextmanager
    def under(self, prefix: str) -> Iterator[None]:
        """The names of what is recorded meanwhile begin with it."""
        self._prefix = prefix
        try:
            yield
        finally:
            self._prefix = ""

    def progress(self, text: str) -> None:
        """Say what takes time now; looks how busy the machine is before it begins."""
        look = Load()
        time.sleep(_LOOK_S)
        self._idle_pct = look.idle_pct()
        print(
            f"  - {text}" + (f" ({self._prefix.rstrip('.')})" if self._prefix else ""), flush=True
        )
        self._step_load = Load()

    def _starved(self) -> dict[str, Any]:
        """How busy the machine was, if too busy: stolen since the step began, idle before it."""
        stolen_pct = self._step_load.stolen_pct()
        if stolen_pct < MAX_STOLEN_PCT and self._idle_pct >= MIN_IDLE_PCT:
            return {}
        return {
            "starved": True,
            "stolen_pct": round(stolen_pct, 1),
            "idle_before_pct": round(self._idle_pct, 1),
        }

    def write(self, path: Path, part: str) -> None:
        """Merge into the JSON file, with what was stolen meanwhile; rows of a name are replaced."""
        self.add(f"machine.stolen_pct.{part}", [self._load.stolen_pct()], "%")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = {row["name"] for row in self.rows}
        kept = []
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))["rows"]
            kept = [row for row in old if row["name"] not in fresh]
        path.write_text(json.dumps({"rows": kept + self.rows}, indent=1), encoding="utf-8")
