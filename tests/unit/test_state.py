"""The state on disk: what it keeps, and what is done with one that is damaged or newer."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from vff_qos.core.owners import Owner
from vff_qos.state import BARRED, State, StateError
from vff_qos.state_file import SCHEMA_VERSION, UPGRADES


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


def make_first_version(directory: Path, version: int = 1) -> None:
    with contextlib.closing(sqlite3.connect(directory / "state.db")) as db:
        for statements in UPGRADES[:version]:
            for statement in statements:
                db.execute(statement)
        db.execute(
            "INSERT INTO owners (key, minor, state, since, moved, up_seen, down_seen) "
            "VALUES ('a', 2, 'active', 1.0, 2.0, 3, 4)"
        )
        db.execute(f"PRAGMA user_version={version}")
        db.commit()


def test_a_state_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    make_first_version(tmp_path)
    assert State(str(tmp_path)).owners() == [Owner("a", 2, "active", 1.0, 2.0, 3, 4)]
    assert State(str(tmp_path)).owners()[0].up_bps is None


def copies(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if "state.db." in path.name)


def test_before_an_upgrade_the_old_state_is_copied_for_the_way_back(tmp_path: Path) -> None:
    make_first_version(tmp_path)
    State(str(tmp_path)).save_owners([Owner("b", 3)])
    assert copies(tmp_path) == ["state.db.schema-1"]
    copy = tmp_path / "state.db.schema-1"
    assert copy.stat().st_mode & 0o777 == 0o640
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT key, minor FROM owners").fetchall() == [("a", 2)]
    # Nothing is copied twice, and only the last way back is kept.
    before = copy.stat().st_mtime_ns
    State(str(tmp_path)).close()
    assert copy.stat().st_mtime_ns == before
    (tmp_path / "state.db").unlink()
    make_first_version(tmp_path, 2)
    State(str(tmp_path)).close()
    assert copies(tmp_path) == ["state.db.schema-2"]
    # Moved back, it is the old state, and is upgraded again.
    os.replace(tmp_path / "state.db.schema-2", tmp_path / "state.db")
    assert [owner.key for owner in State(str(tmp_path)).owners()] == ["a"]


def test_a_new_state_has_no_copy(tmp_path: Path) -> None:
    State(str(tmp_path)).close()
    State(str(tmp_path)).close()
    assert copies(tmp_path) == []


def test_names_that_are_to_vanish_vanish_from_the_copy_too(tmp_path: Path) -> None:
    make_first_version(tmp_path)
    state = State(str(tmp_path))
    state.scrub()
    assert copies(tmp_path) == []


def test_a_newer_state_names_the_copy_that_this_program_can_read(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StateError, match=rf"move .*/state\.db\.schema-{SCHEMA_VERSION} there"):
        State(str(tmp_path))


def test_who_is_kept_out_from_an_address_is_renamed_with_all_else(tmp_path: Path) -> None:
    state = State(str(tmp_path))
    assert state.names() == set()
    state.set_value(BARRED, [["alice@x", "c0000201", None, "ops"], ["bob@x", "c0000202", 9.0, "x"]])
    assert state.names() == {"alice@x", "bob@x"}
    state.rename({"alice@x": "user-1"}, {})
    assert state.get_value(BARRED) == [
        ["user-1", "c0000201", None, "ops"], ["bob@x", "c0000202", 9.0, "x"],
    ]  # fmt: skip
