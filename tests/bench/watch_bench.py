"""What it costs an idle agent to keep accounts and to tell what is wrong."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from statistics import median

from vff_qos.config import Paths, load_settings
from vff_qos.core.accounts import DOWNLOAD, UPLOAD
from vff_qos.core.htb import TAG_MASK
from vff_qos.follower import bookkeeping, flow_table, self_check
from vff_qos.follower.self_check import SelfCheck
from vff_qos.journal import Journal
from vff_qos.kernel.packed.conntrack import Conntrack
from vff_qos.kernel.packed.tc import Tc
from vff_qos.lock import Lock
from vff_qos.runfile import WRITE_S, read_report
from vff_qos.state import State

from .rows import Report
from .world import MAJOR, NODE, Agent

_LOOKS = 200


def measure(report: Report, follower: Agent, users: int, runs: int) -> None:
    """A look at what the agent tells of itself, a count of marks, a comparison of connections, a
    round of accounts; and the share of a core that they take together, as often as they come."""
    report.progress(f"{_LOOKS} looks, {runs} counts of marks, comparisons and rounds of accounts")
    with tempfile.TemporaryDirectory(prefix="vff-qos-bench-") as directory:
        looks = _looks(follower, directory)
        with closing(Conntrack()) as conntrack:
            counts = [_cpu_s(lambda: conntrack.count(MAJOR << 16, TAG_MASK)) for _ in range(runs)]
        comparisons = _comparisons(follower, runs)
        rounds = _rounds(directory, users, runs)
    report.add("watch.look_us", [1e6 * look for look in looks], "us")
    report.add("watch.count_marks_ms", [1e3 * count for count in counts], "ms")
    report.add("watch.comparison_ms", [1e3 * one for one in comparisons], "ms")
    report.add(f"accounts.reading_ms.idle_{users}", [1e3 * one for one in rounds], "ms")
    share = median(looks) / WRITE_S
    for costs, pace in (
        (counts, self_check.PACE),
        (comparisons, flow_table.COMPARISON),
        (rounds, bookkeeping.PACE),
    ):
        share += median(costs) / pace.gap_s(median(costs))
    report.add("watch.cpu_pct.idle", [100 * share], "%")


def _looks(follower: Agent, directory: str) -> list[float]:
    settings = load_settings(Paths(settings=f"{follower.etc}/settings.yml"))
    told = read_report(follower.run_directory)
    if told is None:
        raise SystemExit("bench: the agent tells nothing of itself")
    check = SelfCheck(directory, settings, Lock(directory), Journal())
    check.look(told)
    return [_cpu_s(lambda: check.look(told)) for _ in range(_LOOKS)]


def _comparisons(follower: Agent, runs: int) -> list[float]:
    """Of a mirror that knows all connections already."""
    settings = load_settings(Paths(settings=f"{follower.etc}/settings.yml"))
    with (
        closing(Conntrack()) as conntrack,
        closing(
            flow_table.FlowTable(settings, [NODE], conntrack, Journal(), lambda _minor: False)
        ) as table,
    ):
        table.compare(lossy=False)
        return [_cpu_s(lambda: table.compare(lossy=False)) for _ in range(runs)]


def _rounds(directory: str, users: int, runs: int) -> list[float]:
    """Both directions, of users who have moved nothing since the round before."""
    devices = {UPLOAD: "vffqos0", DOWNLOAD: "wan0"}
    state = State(directory)
    names = {minor: (f"user{minor}@example.com",) for minor in range(2, users + 2)}
    with closing(Tc()) as tc:

        def book() -> None:
            for direction, device in devices.items():
                sent = tc.sent_bytes(socket.if_nametoindex(device), MAJOR)
                own = {minor: count for minor, count in sent.items() if minor in names}
                state.accounts.book(direction, own, names.__getitem__, time.time())

        book()
        spent = [_cpu_s(book) for _ in range(runs)]
    state.close()
    return spent


def _cpu_s(work: Callable[[], object]) -> float:
    """Processor time, the kernel's included."""
    start = time.thread_time()
    work()
    return time.thread_time() - start
