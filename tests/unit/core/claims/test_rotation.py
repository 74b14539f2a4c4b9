"""What becomes of a log's file, and which files were the log."""

from __future__ import annotations

import pytest

from vff_qos.core.claims.rotation import (
    MAX_BESIDE,
    FileBeside,
    beside,
    came_between,
    find,
    is_rotated,
    is_truncated,
)

LOG = "access.log"


def file(
    name: str, first: bytes, inode: int = 1, size: int = 1_000, mtime_ns: int = 0
) -> FileBeside:
    return FileBeside(name, 7, inode, size, mtime_ns, first)


@pytest.mark.parametrize(
    ("offset", "size", "first", "truncated"),
    [
        (100, 120, b"first line and more", False),
        (100, 100, b"first line", False),
        (100, 90, b"first line", True),
        (100, 500, b"other line", True),
    ],
)
def test_whether_a_file_began_anew(offset: int, size: int, first: bytes, truncated: bool) -> None:
    assert is_truncated(b"first line", offset, size, first) is truncated


@pytest.mark.parametrize(
    ("name", "rotated"),
    [
        ("access.log.1", True),
        ("access.log-20261127", True),
        ("access.log.2026-11-27T04:00_1", True),
        ("access-20261127.log", True),
        ("access.log", False),
        ("access.log.1.gz", False),
        ("access.log.old", False),
        ("access.log2", False),
        ("error.log.1", False),
        ("access.log.\N{ARABIC-INDIC DIGIT THREE}", False),
    ],
)
def test_names_of_logs_of_before(name: str, rotated: bool) -> None:
    assert is_rotated(name, LOG) is rotated


def test_logs_come_in_the_order_in_which_they_ended() -> None:
    files = [
        file("access.log", b"5"),
        file("access.log.1", b"4", mtime_ns=4),
        file("access.log.2", b"3", mtime_ns=3),
        file("access.log.3", b"2 which is read", mtime_ns=2),
        file("access.log.4", b"1", mtime_ns=9),
        file("access.log.5", b"", mtime_ns=5),
    ]
    known = beside(files[4:5], LOG)
    assert known is not None and len(known) == 1
    found = came_between(files, LOG, known, [b"2"])
    assert [one.name for one in found] == ["access.log.2", "access.log.1"]


def test_an_inode_is_another_files_where_that_lay_there_before() -> None:
    old = file("access.log.1", b"old", inode=5)
    saved = {"device": 7, "inode": 5, "offset": 0, "fingerprint": ""}
    assert find(saved, [old], LOG, []) == old
    assert find(saved, [old], LOG, beside([old], LOG) or []) is None


def test_so_many_are_known_and_no_more() -> None:
    files = [file(f"access.log.{number}", b"%d" % number) for number in range(MAX_BESIDE + 1)]
    assert len(beside(files[1:], LOG) or ()) == MAX_BESIDE
    assert beside(files, LOG) is None
