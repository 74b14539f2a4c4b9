"""What a change of a log's file means."""

from __future__ import annotations

import pytest

from vff_qos.core.claims.rotation import FileChange, Identity, judge_change

HELD = Identity(1, 2, b"first line")


@pytest.mark.parametrize(
    ("offset", "size", "first", "at_path", "change"),
    [
        (100, 120, b"first line and more", (1, 2), FileChange.KEEP),
        (100, 90, b"first line", (1, 2), FileChange.TRUNCATED),
        (100, 500, b"other line", (1, 2), FileChange.TRUNCATED),
        (100, 100, b"first line", (1, 3), FileChange.ROTATED),
        (100, 100, b"first line", None, FileChange.GONE),
    ],
)
def test_what_happened_to_the_file(
    offset: int, size: int, first: bytes, at_path: tuple[int, int] | None, change: FileChange
) -> None:
    assert judge_change(HELD, offset, size, first, at_path) is change
