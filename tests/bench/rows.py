"""Results: medians over runs, one table, one JSON file with fixed names."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from lab.machine import Load


class Report:
    """Rows in the order in which they were measured."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._load = Load()

    def add(self, name: str, runs: list[float], unit: str) -> float:
        """Record a row, print it, return its median.  No run, or no number, ends the bench."""
        if not runs or not all(map(math.isfinite, runs)):
            raise SystemExit(f"bench: {name} was not measured: {runs}")
        value = statistics.median(runs)
        self.rows.append({"name": name, "value": value, "unit": unit, "runs": runs})
        spread = f"{min(runs):,.4g} to {max(runs):,.4g}" if len(runs) > 1 else ""
        print(f"  {name:<44} {value:>14,.4g} {unit:<9} {spread}", flush=True)
        return value

    def ratio(self, name: str, of: str, to: str) -> None:
        """Record how many times the row ``to`` the row ``of`` is, both of this report."""
        values = {row["name"]: row["value"] for row in self.rows}
        self.add(name, [values[of] / values[to]], "x")

    @staticmethod
    def progress(text: str) -> None:
        """Say what takes time now."""
        print(f"  - {text}", flush=True)

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
