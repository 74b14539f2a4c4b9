"""``make bench``: the agent and the classes natively, here; the rest on lab nodes."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lab.progress import LabError

from . import (
    accuracy,
    agent_bench,
    hooks_bench,
    lab_bench,
    split,
    tree_users_bench,
    trees_bench,
)
from .rows import Report
from .world import BENCH_CPU, HERE, Code, enter_namespace, run

BUILD = Path(__file__).parents[2] / "build"
REPORT = BUILD / "bench" / "report.json"
ACCURACY = BUILD / "lab" / "accuracy.json"
BASE = BUILD / "bench" / "base"
PARTS = ("agent", "accuracy", "split", "trees", "hooks", "lab")


def main() -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--only", choices=PARTS, help="one part; the report keeps the others")
    parser.add_argument("--base", metavar="REV", help="compare the agent with this commit's")
    args = parser.parse_args()
    if args.base and args.only not in (None, "agent"):
        parser.error(f"--base compares agents: the part {args.only} has none")
    for part in PARTS:
        if args.only in (None, part):
            try:
                _measure(part, args.quick, args.base)
            except LabError as error:
                raise SystemExit(f"bench: {error}") from error
    print(f"written to {REPORT}")


def _measure(part: str, quick: bool, base: str | None) -> None:
    report = Report()
    if part == "agent":
        minutes = (4 if quick else 9) * (2 if base else 1)
        print(f"The agent, on one core (about {minutes} minutes):", flush=True)
        speed = agent_bench.QUICK if quick else agent_bench.FULL
        with _checkout(base) as other:
            _in_namespace(
                lambda: agent_bench.measure(report, speed, other), report, part, {BENCH_CPU}
            )
        return
    if part == "split":
        print(f"What splitting packets costs, natively ({1 if quick else 3} minutes):", flush=True)
        seconds, runs = (3.0, 1) if quick else (5.0, 3)
        _in_namespace(lambda: split.measure(report, seconds, runs), report, part)
        return
    if part == "trees":
        print(f"One tree and two, natively ({2 if quick else 5} minutes):", flush=True)
        seconds, runs = (1.0, 3) if quick else (2.0, 7)

        def measure() -> None:
            trees_bench.measure(report, seconds, runs)
            tree_users_bench.measure(
                report, partial(trees_bench.make_device, trees=2), seconds, runs
            )

        _in_namespace(measure, report, part)
        return
    if part == "hooks":
        print("Logins at the auth hook, natively (less than a minute):", flush=True)
        logins = 300 if quick else 2_000
        _in_namespace(lambda: hooks_bench.measure(report, logins), report, part)
        return
    if part == "accuracy":
        print(f"Limits, natively (about {2 if quick else 6} minutes):", flush=True)
        accuracy.measure(report, ACCURACY, *((1, 1.0) if quick else (3, 2.0)))
    else:
        print(f"A lab node (about {10 if quick else 20} minutes):", flush=True)
        lab_bench.measure(report, quick)
    report.write(REPORT, part)


@contextmanager
def _checkout(revision: str | None) -> Iterator[Code | None]:
    """Another commit's files, while it lasts."""
    if not revision:
        yield None
        return
    git = ("git", "-C", str(HERE.root))
    try:
        commit = run(*git, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
        if BASE.exists():  # of a bench that was killed
            run(*git, "worktree", "remove", "--force", str(BASE))
        run(*git, "worktree", "add", "--detach", str(BASE), commit)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"bench: BASE={revision}: {error.stderr.strip()}") from error
    try:
        print(f"  compared with {commit}", flush=True)
        yield Code(BASE, "base.")
    finally:
        run(*git, "worktree", "remove", "--force", str(BASE))


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
