"""``make bench``: the agent and the classes natively, here; the rest on lab nodes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from lab.progress import LabError

from . import accuracy, agent_bench, lab_bench, split
from .rows import Report
from .world import BENCH_CPU, enter_namespace

BUILD = Path(__file__).parents[2] / "build"
REPORT = BUILD / "bench" / "report.json"
ACCURACY = BUILD / "lab" / "accuracy.json"
PARTS = ("agent", "accuracy", "split", "lab")


def main() -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--only", choices=PARTS, help="one part; the report keeps the others")
    args = parser.parse_args()
    for part in PARTS:
        if args.only in (None, part):
            try:
                _measure(part, args.quick)
            except LabError as error:
                raise SystemExit(f"bench: {error}") from error
    print(f"written to {REPORT}")


def _measure(part: str, quick: bool) -> None:
    report = Report()
    if part == "agent":
        print(f"The agent, on one core (about {2 if quick else 5} minutes):", flush=True)
        speed = agent_bench.QUICK if quick else agent_bench.FULL
        _in_namespace(lambda: agent_bench.measure(report, speed), report, part, {BENCH_CPU})
        return
    if part == "split":
        print(f"What splitting packets costs, natively ({1 if quick else 3} minutes):", flush=True)
        seconds, runs = (3.0, 1) if quick else (5.0, 3)
        _in_namespace(lambda: split.measure(report, seconds, runs), report, part)
        return
    if part == "accuracy":
        print(f"Limits, natively (about {2 if quick else 6} minutes):", flush=True)
        accuracy.measure(report, ACCURACY, *((1, 1.0) if quick else (3, 2.0)))
    else:
        print(f"A lab node (about {10 if quick else 20} minutes):", flush=True)
        lab_bench.measure(report, quick)
    report.write(REPORT, part)


def _in_namespace(
    measure: Callable[[], None], report: Report, part: str, cores: set[int] | None = None
) -> None:
    """Measure and write the report in a child: it stays in a namespace, and on its cores."""
    child = os.fork()
    if child == 0:
        enter_namespace()
        if cores:
            os.sched_setaffinity(0, cores)
        measure()
        report.write(REPORT, part)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"bench: the part {part} was not measured")


if __name__ == "__main__":
    main()
