"""Files that are replaced at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vff_qos.replacing import replacing


def test_the_old_one_is_seen_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(str(path), 0o640, durable=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(str(path), 0o640) as file:
        file.write(b"ne")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_lies_in_the_way_is_no_way_out(tmp_path: Path) -> None:
    """Whoever may write into the directory does not lead us elsewhere."""
    path, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_text("theirs")
    Path(f"{path}.{os.getpid()}").symlink_to(victim)
    with replacing(str(path), 0o600) as file:
        file.write(b"ours")
    assert (path.read_text(), victim.read_text()) == ("ours", "theirs")
    assert not path.is_symlink()
