"""What becomes of a log's file: truncated, renamed, copied; and which files were the log.

What was the log meanwhile is told from what lay beside it by what files begin with, never by times:
stamps are of an unknown zone, and a copy has any mtime.  By mtime they are only put in order.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

FINGERPRINT_BYTES = 256
#: Of more files a checkpoint does not say that they lay beside the log.
MAX_BESIDE = 256

#: What rotation puts behind a name: ``.1``, ``-20261127``, ``.2026-11-27_04``.
_ADDED = r"[.-][0-9][0-9.T:_-]*"


class FileBeside(NamedTuple):
    """A log, or what lies beside it: its name, what tells files apart, and its first bytes."""

    name: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    first: bytes


def is_truncated(fingerprint: bytes, offset: int, size: int, first: bytes) -> bool:
    """Whether a file that began with ``fingerprint`` and was read up to ``offset`` began anew.

    It may have grown past ``offset`` again: only its first bytes tell.
    """
    return size < offset or not first.startswith(fingerprint)


def is_rotated(name: str, log: str) -> bool:
    """Whether a file of that name may have been the log: ``log.1``, or ``log-20261127.ext``."""
    stem, extension = map(re.escape, os.path.splitext(log))
    return bool(re.fullmatch(f"{stem}(?:{extension}{_ADDED}|{_ADDED}{extension})", name))


def beside(files: Iterable[FileBeside], log: str) -> list[int] | None:
    """What a checkpoint says of logs of before; None if they are too many."""
    known = {_digest(file.first) for file in files if is_rotated(file.name, log)}
    return sorted(known) if len(known) <= MAX_BESIDE else None


def find(
    saved: dict[str, Any], files: Iterable[FileBeside], log: str, known: Collection[int]
) -> FileBeside | None:
    """The file of a checkpoint, wherever it was moved, or a copy made before it was truncated."""
    fingerprint, copies = bytes.fromhex(saved["fingerprint"]), []
    for file in files:
        if is_truncated(fingerprint, saved["offset"], file.size, file.first):
            continue
        may_be_log = file.name == log or is_rotated(file.name, log)
        is_new = may_be_log and _digest(file.first) not in known
        if (file.device, file.inode) == (saved["device"], saved["inode"]):
            # Of a file that was empty the inode may be another one's by now.
            if fingerprint or is_new:
                return file
        elif is_new and len(fingerprint) == FINGERPRINT_BYTES:
            copies.append(file)
    return max(copies, key=lambda file: file.size) if copies else None


def came_between(
    files: Iterable[FileBeside], log: str, known: Collection[int], others: Iterable[bytes]
) -> list[FileBeside]:
    """Files that were the log since those lay there of which ``known`` tells, in their order.

    ``others`` are the first bytes of logs that are read anyway: their copies do not count.
    """
    read = [first for first in others if first]
    read += [file.first for file in files if file.name == log and file.first]
    found = []
    for file in sorted(files, key=lambda file: file.mtime_ns):
        if (
            is_rotated(file.name, log)
            and file.first
            and _digest(file.first) not in known
            and not any(_begin_alike(file.first, first) for first in read)
        ):
            read.append(file.first)
            found.append(file)
    return found


def _begin_alike(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


def _digest(first: bytes) -> int:
    return zlib.crc32(first)
