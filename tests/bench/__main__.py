"""``make bench``: the agent natively, here; the datapath on a lab node (``lab`` package)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import agent_bench
from .rows import Report
from .world import BENCH_CPU, enter_namespace

REPORT = Path(__file__).parents[2] / "build" / "bench" / "report.json"


def main() -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    args = parser.parse_args()
    about = 2 if args.quick else 5
    print(f"The agent, on one core of this machine (about {about} minutes):", flush=True)
    enter_namespace()
    os.sched_setaffinity(0, {BENCH_CPU})
    report = Report()
    agent_bench.measure(report, agent_bench.QUICK if args.quick else agent_bench.FULL)
    report.write(REPORT)
    print(f"written to {REPORT}")


if __name__ == "__main__":
    main()
