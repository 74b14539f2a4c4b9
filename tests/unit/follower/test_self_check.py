"""How often the agent counts marks: by what it costs, also while they are overwritten."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vff_qos import __version__, told
from vff_qos.core.health.report import Report
from vff_qos.core.settings import Settings
from vff_qos.follower import self_check
from vff_qos.follower.self_check import SelfCheck
from vff_qos.journal import Journal
from vff_qos.lock import Lock

CLAIMED, COUNT_COST_S, REPORT_EACH_S = 50_000, 0.1, 5.0


class Counts:
    """In place of conntrack: so many connections bear our mark, and a count takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.cpu_s, self.counts, self.marked = 1_000.0, 0.0, 0, CLAIMED
        clock = SimpleNamespace(monotonic=lambda: self.now_s, thread_time=lambda: self.cpu_s)
        monkeypatch.setattr(self_check, "time", clock)
        monkeypatch.setattr(told, "time", clock)
        monkeypatch.setattr(self_check, "Conntrack", lambda: self)
        monkeypatch.setattr(self_check, "look_at_host", lambda _facts: None)
        monkeypatch.setattr(self_check, "ask_connections", lambda *_all: None)

    def count(self, _tag: int, _mask: int) -> int:
        self.counts += 1
        self.cpu_s += COUNT_COST_S
        return self.marked

    def close(self) -> None:
        """As the socket's."""


def an_hour(counts: Counts, directory: Path, robbed: int = 0) -> int:
    """In how many reports marks were seen to be missing."""
    check = SelfCheck(
        str(directory), Settings(wan="wan0"), Lock(str(directory)), Journal(lambda: 0.0)
    )
    known: dict[str, int | str] = {
        "flows_claimed": CLAIMED - robbed, "flows_robbed": robbed, "users": 5, "marked": CLAIMED,
    }  # fmt: skip
    missing = 0
    for _ in range(int(3_600 / REPORT_EACH_S)):
        counts.now_s += REPORT_EACH_S
        now_s = time.time()
        missing += check.look(
            Report(1, now_s, [], 0, known, version=__version__, started=now_s - 9_000.0)
        )
    return missing


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


@pytest.mark.parametrize("marked", [CLAIMED, CLAIMED - 1])
def test_marks_are_counted_seldom_and_one_that_has_just_ended_is_not_missing(
    counts: Counts, tmp_path: Path, marked: int
) -> None:
    counts.marked = marked
    assert an_hour(counts, tmp_path) == 0
    # After half a minute, and then each thousand seconds.
    assert counts.counts == 4


@pytest.mark.parametrize("robbed", [0, 30_000])
def test_overwritten_marks_are_counted_ten_times_as_often_and_no_more(
    counts: Counts, tmp_path: Path, robbed: int
) -> None:
    """Before and after a comparison has found them."""
    counts.marked = CLAIMED - 30_000
    missing = an_hour(counts, tmp_path, robbed)
    assert 30 <= missing == counts.counts <= 40
