"""From pieces of a stream to blocks of whole lines, and what a change of the file means."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

#: A carry beyond this is no line of an access log: drop it up to the next newline.
MAX_CARRY_BYTES = 65_536
FINGERPRINT_BYTES = 256


class Assembler:
    """Collects bytes; gives them back up to the last newline."""

    def __init__(self) -> None:
        self._carry = b""
        self._dropping = False
        self.overlong = 0

    def feed(self, data: bytes) -> bytes:
        """The whole lines that ``data`` completes, with their newlines; may be empty."""
        if self._dropping:
            end = data.find(b"\n")
            if end < 0:
                return b""
            data = data[end + 1 :]
            self._dropping = False
        end = data.rfind(b"\n") + 1
        if not end:
            self._carry += data
            if len(self._carry) > MAX_CARRY_BYTES:
                self.overlong += 1
                self._carry = b""
                self._dropping = True
            return b""
        block = self._carry + data[:end]
        self._carry = data[end:]
        return block

    @property
    def pending(self) -> int:
        """Bytes of the unfinished line at the end."""
        return len(self._carry)

    def reset(self) -> None:
        """The stream starts anew: what was unfinished never will be."""
        self._carry = b""
        self._dropping = False


class Change(Enum):
    """What happened to the file behind a held descriptor."""

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
) -> Change:
    """Compare a held file (read up to ``offset``) with what is there now.

    ``size`` and ``first_bytes`` are of the held descriptor, ``at_path`` is (device, inode) of
    the path or None.  A truncated file may have grown past ``offset`` again: only its first bytes
    tell.
    """
    if size < offset or not first_bytes.startswith(held.fingerprint):
        return Change.TRUNCATED
    if at_path is None:
        return Change.GONE
    if at_path != (held.device, held.inode):
        return Change.ROTATED
    return Change.KEEP
