"""The state on disk: what it keeps, and what is done with one that is damaged or newer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from vff_qos.core.owners import Owner
from vff_qos.state import State, StateError
from vff_qos.state_file import UPGRADES


def test_state_survives_and_sees_other_writers(tmp_path: Path) -> None:
    state, other = State(str(tmp_path)), State(str(tmp_path))
    version = state.version()
    other.save_owners([Owner("a", 2, moved=1.5), Owner("b", 3)])
    assert state.version() != version
    assert [owner.key for owner in state.owners()] == ["a", "b"]
    state.save_owners([Owner("c", 2)], [Owner("a", 2)])
    assert {owner.key: owner.minor for owner in other.owners()} == {"b": 3, "c": 2}
    state.set_value("x", {"y": [1]})
    assert other.get_value("x") == {"y": [1]}
    state.set_value("x", None)
    assert other.get_value("x") is None


def test_a_damaged_state_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, not at all" * 100)
    state = State(str(tmp_path))
    assert state.owners() == []
    assert Path(state.moved_aside).exists()


def test_a_newer_state_is_refused(tmp_path: Path) -> None:
    state = State(str(tmp_path))
    state.close()
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StateError, match="newer than this program"):
        State(str(tmp_path))


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    state = State(str(tmp_path))
    state.save_owners([Owner("a", 2)])
    with pytest.raises(StateError):
        state.save_owners([Owner("b", 3), Owner("c", None)])  # type: ignore[arg-type]
    assert [owner.key for owner in state.owners()] == ["a"]


def test_a_state_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "state.db")
    for statement in UPGRADES[0]:
        db.execute(statement)
    db.execute("INSERT INTO owners VALUES ('a', 2, 'active', 1.0, 2.0, 3, 4)")
    db.execute("PRAGMA user_version=1")
    db.commit()
    db.close()
    assert State(str(tmp_path)).owners() == [Owner("a", 2, "active", 1.0, 2.0, 3, 4)]
    assert State(str(tmp_path)).owners()[0].up_bps is None
