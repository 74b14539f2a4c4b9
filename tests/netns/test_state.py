"""A state that cannot be written, on file systems that are full, read-only or somebody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.owners import Owner
from vff_qos.state import State, StateError

from .harness import fill, run, small_disk


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The state directory, on a small file system; the spare one is ``tmp_path / "run"``."""
    with small_disk(tmp_path / "state"):
        yield tmp_path / "state"


def opened(home: Path) -> State:
    return State(str(home), str(home.parent / "run"))


def spare(home: Path) -> Path:
    return home.parent / "run" / "state.db"


def keys(state: State) -> list[str]:
    return sorted(owner.key for owner in state.owners())


def test_a_full_disk_at_the_start_is_no_reason_not_to_start(home: Path) -> None:
    state = opened(home)
    state.save_owners([Owner("a", 2)])
    state.close()
    ballast = fill(home)
    state = opened(home)
    assert keys(state) == ["a"]
    assert state.trouble.startswith(f"{home}/state.db: ") and "which a reboot empties" in (
        state.trouble
    )
    state.save_owners([Owner("b", 3)])
    # Whoever comes later sees the same, and so does who was there before.
    assert keys(opened(home)) == ["a", "b"]
    assert not state.settle()
    ballast.unlink()
    assert state.settle() and state.trouble == "" and not spare(home).exists()
    state.save_owners([Owner("c", 4)])
    state.close()
    assert keys(State(str(home))) == ["a", "b", "c"]


def test_a_disk_that_fills_up_loses_nothing_and_all_processes_move(home: Path) -> None:
    state, other = opened(home), opened(home)
    state.save_owners([Owner("a", 2)])
    version = other.version()
    fill(home)
    for number in range(3, 1_000):
        state.save_owners([Owner(f"user{number}@example.com", number)])
    assert "full" in state.trouble
    assert other.version() != version
    assert len(other.owners()) == 998 and other.trouble
    other.set_value("suspended", {"since": 1.0})
    assert state.get_value("suspended") == {"since": 1.0}


def test_who_waited_while_the_state_came_back_writes_to_the_right_place(home: Path) -> None:
    ballast = fill(home)
    state, waiting = opened(home), opened(home)
    ballast.unlink()
    assert state.settle()
    waiting.save_owners([Owner("a", 2)])
    assert keys(state) == ["a"] and not spare(home).exists() and waiting.trouble == ""


def test_a_read_only_file_system_is_like_a_full_one(home: Path) -> None:
    state = opened(home)
    state.save_owners([Owner("a", 2)])
    state.close()
    run("mount", "-o", "remount,ro", str(home))
    state = opened(home)
    state.save_owners([Owner("b", 3)])
    assert keys(state) == ["a", "b"]
    assert not state.settle()
    run("mount", "-o", "remount,rw", str(home))
    assert state.settle()
    assert keys(State(str(home))) == ["a", "b"]


def test_the_spare_file_belongs_to_the_agents_account(home: Path) -> None:
    os.chown(home, 4711, 4712)
    fill(home)
    opened(home)
    status = spare(home).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4711, 4712, 0o640)


def test_without_a_spare_directory_it_is_an_error_that_says_why(home: Path) -> None:
    fill(home)
    with pytest.raises(StateError, match=r"state\.db: "):
        State(str(home)).set_value("x", "y" * 300_000)


def test_a_damaged_state_on_a_full_disk_begins_anew(home: Path) -> None:
    (home / "state.db").write_bytes(b"not a database, not at all" * 100)
    fill(home)
    state = opened(home)
    assert keys(state) == []
    state.save_owners([Owner("a", 2)])
    assert keys(opened(home)) == ["a"]


def test_two_stays_away_from_home_are_told_apart(home: Path) -> None:
    state, waiting = opened(home), opened(home)
    ballast = fill(home)
    state.set_value("x", "y" * 300_000)
    assert len(waiting.get_value("x")) == 300_000
    state.set_value("x", None)
    ballast.unlink()
    assert state.settle()
    fill(home)
    state.set_value("x", "z" * 300_000)
    waiting.save_owners([Owner("a", 2)])
    assert keys(state) == ["a"]


_WRITER = """
import sys
from vff_qos.core.owners import Owner
from vff_qos.state import State
home, run, number, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
state = State(home, run)
for turn in range(count):
    if number % 2:  # as commands do
        state.close()
        state = State(home, run)
    state.save_owners([Owner(f"{number}.{turn}", 2 + number + 4 * turn)])
"""


def test_nothing_is_lost_while_the_state_goes_to_and_fro(tmp_path: Path) -> None:
    home, count = tmp_path / "state", 1_500
    with small_disk(home, "4m"):
        state = opened(home)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, home, tmp_path / "run", str(number), str(count)]
            )
            for number in range(4)
        ]
        moves = 0
        while any(writer.poll() is None for writer in writers):
            ballast = fill(home)
            state.set_value("x", "y" * 100_000)
            ballast.unlink()
            moves += bool(state.trouble) and state.settle()
        assert [writer.returncode for writer in writers] == [0] * 4
        assert moves > 3
        wanted = {f"{number}.{turn}" for number in range(4) for turn in range(count)}
        assert set(keys(state)) == wanted


def test_the_history_of_accounts_does_not_go_into_memory_and_comes_back_whole(home: Path) -> None:
    """It may be some hundred megabytes, and the spare directory is memory."""
    state = opened(home)
    at_s = 1_780_000_000.0

    def book(count: int, user: str = "a@x") -> None:
        state.accounts.book(0, {7: count}, lambda _minor: (user,), at_s)

    def found(unit: str) -> list[tuple[str, int]]:
        return [(key, up) for key, _at, up, _down in state.accounts.amounts(unit, 0, 10**9)]

    book(0)
    book(100)
    ballast = fill(home)
    book(130)
    book(135, "b@x")
    assert state.trouble
    # What was booked before is not there, and totals and meters go on.
    assert found("hour") == [("a@x", 30), ("b@x", 5)]
    assert {a.key: a.upload for a in state.accounts.accounts()} == {"a@x": 130, "b@x": 5}
    ballast.unlink()
    assert state.settle()
    for unit in ("hour", "day"):
        assert found(unit) == [("a@x", 130), ("b@x", 5)]
    book(140)
    assert {a.key: a.upload for a in state.accounts.accounts()} == {"a@x": 135, "b@x": 5}
