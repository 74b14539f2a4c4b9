"""What a change of a log's file means."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

FINGERPRINT_BYTES = 256


class FileChange(Enum):
    """What happened to the file that a descriptor holds open."""

    KEEP = "same file, read on"
    TRUNCATED = "same inode, written anew from the start"
    ROTATED = "another file stands at the path"
    GONE = "nothing stands at the path"


class Identity(NamedTuple):
    """What tells files apart: device, inode and up to 256 first bytes."""

    device: int
    inode: int
    fingerprint: bytes


def judge_change(
    held: Identity, offset: int, size: int, first_bytes: bytes, at_path: tuple[int, int] | None
) -> FileChange:
    """Compare a held file (read up to ``offset``) with what is there now.

    ``size`` and ``first_bytes`` are of the held descriptor, ``at_path`` is (device, inode) of
    the path or None.  A truncated file may have grown past ``offset`` again: only its first bytes
    tell.
    """
    if size < offset or not first_bytes.startswith(held.fingerprint):
        return FileChange.TRUNCATED
    if at_path is None:
        return FileChange.GONE
    if at_path != (held.device, held.inode):
        return FileChange.ROTATED
    return FileChange.KEEP
