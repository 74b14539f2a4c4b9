"""Rows of the bench: what a starved machine measured says so, and ratios follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import rows
from bench.rows import Report


class _Busy:
    """A machine as busy as the test wants it."""

    stolen, idle = 0.0, 90.0

    def stolen_pct(self) -> float:
        return self.stolen

    def idle_pct(self) -> float:
        return self.idle


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[_Busy]:
    busy = type("Busy", (_Busy,), {})
    monkeypatch.setattr(rows, "Load", busy)
    monkeypatch.setattr(rows, "_LOOK_S", 0.0)
    return busy


@pytest.mark.parametrize("stolen, idle", [(2.0, 90.0), (0.0, 9.9)])
def test_a_starved_machine_is_told_of(
    machine: type[_Busy], stolen: float, idle: float, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.stolen, machine.idle = stolen, idle
    report = Report()
    report.progress("one step")
    report.add("worst_pct", [36_750_000.0], "%")
    report.add("cpu_us", [3.0], "us")
    machine.idle, machine.stolen = 90.0, 0.0
    report.progress("the next, when others are done")
    report.add("later_us", [4.0], "us")
    worst, cpu, later = report.rows
    assert (worst["value"], worst["starved"], worst["runs"]) == (None, True, [36_750_000.0])
    assert (cpu["value"], cpu["starved"]) == (3.0, True)
    assert (cpu["stolen_pct"], cpu["idle_before_pct"]) == (stolen, idle)
    assert "starved" not in later
    shown = capsys.readouterr().out
    assert "36" not in shown
    assert shown.count("starved") == 2


def test_ratios_are_of_rows_that_both_have(machine: type[_Busy]) -> None:
    report = Report()
    with report.under("base."):
        report.add("a_us", [8.0], "us")
        report.add("lost", [0.0], "flows")
        machine.idle = 0.0
        report.progress("a starved step")
        report.add("b_us", [4.0], "us")
    machine.idle = 90.0
    report.progress("one that is not")
    for name in ("a_us", "lost", "b_us", "new_s"):
        report.add(name, [2.0], "us")
    report.ratios("base.")
    ratios = {row["name"]: row for row in report.rows if row["name"].startswith("ratio.")}
    assert {name: row["value"] for name, row in ratios.items()} == {
        "ratio.a_us": 0.25,
        "ratio.b_us": 0.5,
    }
    assert "starved" not in ratios["ratio.a_us"]
    assert ratios["ratio.b_us"]["starved"]


def test_a_report_keeps_the_rows_of_other_parts(machine: type[_Busy], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for name, value in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        report = Report()
        report.add(name, [value], "s")
        report.write(file, "agent")
    found = {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}
    assert found == {"one": 3.0, "two": 2.0, "machine.stolen_pct.agent": 0.0}
