"""Bytes to lines, what a change of a file means, tuples to ask for, and the state on disk."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.lines import MAX_CARRY_BYTES, Assembler
from vff_qos.core.claims.rotation import Change, Identity, judge_change
from vff_qos.core.owners import Owner
from vff_qos.state import State, StateError
from vff_qos.state_file import UPGRADES


@given(lines=st.lists(st.binary(max_size=50).map(lambda b: b.replace(b"\n", b"")), max_size=20),
       cuts=st.lists(st.integers(0, 1000), max_size=10))  # fmt: skip
def test_lines_survive_any_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    assembler = Assembler()
    out = b"".join(assembler.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    assert out == data
    assert assembler.pending == 0


def test_an_endless_line_is_dropped_up_to_the_next() -> None:
    assembler = Assembler()
    for _ in range(MAX_CARRY_BYTES // 1000 + 5):
        assert assembler.feed(b"x" * 1000) == b""
    assert assembler.pending <= MAX_CARRY_BYTES
    assert assembler.feed(b"tail\ngood\n") == b"good\n"
    assert assembler.overlong == 1


HELD = Identity(1, 2, b"first line")


@pytest.mark.parametrize(
    ("offset", "size", "first", "at_path", "change"),
    [
        (100, 120, b"first line and more", (1, 2), Change.KEEP),
        (100, 90, b"first line", (1, 2), Change.TRUNCATED),
        (100, 500, b"other line", (1, 2), Change.TRUNCATED),
        (100, 100, b"first line", (1, 3), Change.ROTATED),
        (100, 100, b"first line", None, Change.GONE),
    ],
)
def test_what_happened_to_the_file(
    offset: int, size: int, first: bytes, at_path: tuple[int, int] | None, change: Change
) -> None:
    assert judge_change(HELD, offset, size, first, at_path) is change


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
