"""From what systemd says to what it is told."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

A, GC, TIMER = "a.service", "gc.service", "gc.timer"
UNITS = [A, GC, TIMER]

Facts = dict[str, dict[str, str]]


@pytest.fixture
def units(plugin: Callable[[str], ModuleType]) -> ModuleType:
    return plugin("modules/qos_units")


def show(a: str, gc: str, timer: str) -> str:
    """Output of systemctl show; each word is ActiveState/UnitFileState/LoadState."""
    blocks = []
    for unit, words in zip(UNITS, (a, gc, timer), strict=True):
        active, file, load = words.split("/")
        blocks.append(
            f"Id={unit}\nLoadState={load}\nActiveState={active}\nUnitFileState={file}\n"
            "NeedDaemonReload=no\n"
        )
    return "\n".join(blocks)


RUNNING = show("active/enabled/loaded", "inactive/static/loaded", "active/enabled/loaded")
MASKED = show("inactive/masked/masked", "inactive/masked/masked", "inactive/masked/masked")
STOPPED = show("inactive/disabled/loaded", "inactive/static/loaded", "inactive/disabled/loaded")
ABSENT = show("inactive//not-found", "inactive//not-found", "inactive//not-found")


def steps(
    module: ModuleType, text: str, state: str, enabled: bool | None, masked: bool | None
) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = module.steps(
        UNITS, module.parse_show(text), state, enabled, masked
    )
    return found


def test_what_runs_already_is_left_alone(units: ModuleType) -> None:
    assert steps(units, RUNNING, "started", True, False) == []


def test_a_unit_without_install_section_is_neither_enabled_nor_started(units: ModuleType) -> None:
    assert steps(units, STOPPED, "started", True, False) == [
        ("enable", [A, TIMER]),
        ("start", [A, TIMER]),
    ]


def test_the_kill_switch_stops_before_it_masks(units: ModuleType) -> None:
    assert steps(units, RUNNING, "stopped", None, True) == [
        ("stop", [A, TIMER]),
        ("mask", UNITS),
    ]
    assert steps(units, MASKED, "stopped", None, True) == []


def test_units_that_do_not_exist_are_neither_stopped_nor_masked(units: ModuleType) -> None:
    assert steps(units, ABSENT, "stopped", None, True) == []
    assert steps(units, ABSENT, "stopped", False, False) == []


def test_removal_unmasks_so_that_no_mask_is_left(units: ModuleType) -> None:
    assert steps(units, MASKED, "stopped", False, False) == [("unmask", UNITS)]
    assert steps(units, RUNNING, "stopped", False, False) == [
        ("stop", [A, TIMER]),
        ("disable", [A, TIMER]),
    ]


def test_a_failed_unit_is_forgiven_and_started(units: ModuleType) -> None:
    text = show("failed/enabled/loaded", "inactive/static/loaded", "active/enabled/loaded")
    assert steps(units, text, "started", True, False) == [("reset-failed", [A]), ("start", [A])]


OTHERS = ["old-gc.timer", "old.service", "old-gone.service"]
THEIRS = {
    "old-gc.timer": {"ActiveState": "active", "UnitFileState": "enabled"},
    "old.service": {"ActiveState": "activating", "UnitFileState": "enabled"},
    "old-gone.service": {"LoadState": "not-found", "ActiveState": "inactive"},
}


def test_other_units_give_way_at_the_last_moment(units: ModuleType) -> None:
    plan = steps(units, STOPPED, "started", True, False)
    assert units.in_place_of(plan, OTHERS, THEIRS) == [
        ("enable", [A, TIMER]),
        ("stop", OTHERS[:2]),
        ("start", [A, TIMER]),
        ("disable", OTHERS[:2]),
    ]
    # After a run that was cut short ours run already.
    assert units.in_place_of([], OTHERS, THEIRS) == [
        ("stop", OTHERS[:2]),
        ("disable", OTHERS[:2]),
    ]
    assert units.in_place_of(plan, [], {}) == plan


class Systemctl:
    """As much of AnsibleModule as `act` uses, with a systemd that does not start ours."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def run_command(self, command: list[str]) -> tuple[int, str, str]:
        self.commands.append(command)
        refused = command[1:] == ["start", A]
        return int(refused), "", "Job failed." if refused else ""

    def get_bin_path(self, name: str, required: bool) -> str:
        return name

    def fail_json(self, msg: str, journal: list[str]) -> None:
        raise SystemExit(msg)


def test_other_units_run_again_if_ours_do_not_start(units: ModuleType) -> None:
    module = Systemctl()
    with pytest.raises(
        SystemExit, match=r"systemctl start a.service: Job failed. \(old.service run"
    ):
        units.act(module, "systemctl", "start", [A], stopped=["old.service"])
    assert module.commands[1] == ["systemctl", "start", "old.service"]
