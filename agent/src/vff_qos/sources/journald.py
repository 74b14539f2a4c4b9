"""The access log in the systemd journal: by unit, or by the name of a container.

journald splits a stream at newlines and keeps their order, so that the entries go through the
same Scanner as a file's lines.  Where it has cut a line itself, the line is no line.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any

from systemd import journal

from ..core.claims.accesslog import MAX_LINE_BYTES, Claim, Scanner
from ..errors import SourceError
from .file import REPLAY_S

_ENTRIES_PER_READ = 2_048
#: While nothing was ever found: how often the journal is opened anew.
_REOPEN_S = 10.0


def unit_matches(unit: str) -> dict[str, str]:
    """Entries that a unit's processes wrote; journald itself fills in the field."""
    return {"_SYSTEMD_UNIT": unit}


def container_matches(name: str) -> dict[str, str]:
    """Entries of Docker's or Podman's journald log driver.

    Everybody may write CONTAINER_NAME; that the writer is root, journald itself says.
    """
    return {"CONTAINER_NAME": name, "_UID": "0"}


class JournalSource:
    """Claims from journal entries that match."""

    def __init__(
        self,
        matches: dict[str, str],
        checkpoint: Any = None,
        replay_since_s: float | None = None,
        directory: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``checkpoint`` is what an earlier run saved; ``directory``: not the system's journal.

        Entries older than 60 s, or than ``replay_since_s`` if that is longer ago, are not read.
        """
        self.more = False
        self.replaying = True
        self._matches, self._directory, self._clock = matches, directory, clock
        # Bounded once and for all: no later seek, wherever it lands, brings an old entry back.
        self._since_us = int(min(clock() - REPLAY_S, (replay_since_s or clock()) - 1) * 1e6)
        self._scanner = Scanner()
        self.counters = self._scanner.counters
        self._cursor: str | None = None
        if checkpoint:
            self._cursor = str(checkpoint["cursor"])
            self._scanner.taint(int(checkpoint["taint"]))
        self._found_any = self._told = False
        self._stale = False
        self._reader: Any = None
        self._next_open = 0.0
        self._epoll = select.epoll()
        self._open()

    def _open(self) -> None:
        """Open the journal and stand before the first entry to read."""
        if self._reader is not None:
            self._reader.close()
        try:
            self._reader = journal.Reader(path=self._directory)
            for field, value in self._matches.items():
                self._reader.add_match(f"{field}={value}")
            self._epoll.register(self._reader.fileno(), select.EPOLLIN)
            self._reader.seek_tail()
            self._found_any |= bool(self._reader._previous())
            self._seek()
        except OSError as error:
            raise _failed(error) from error
        self._stale = False
        self._next_open = time.monotonic() + _REOPEN_S

    def _seek(self) -> None:
        if self._cursor is not None:
            self._reader.seek_cursor(self._cursor)
            # A cursor that was vacuumed away lands somewhere near.
            if self._reader._next() and self._reader.test_cursor(self._cursor):
                if self._reader._get_realtime() >= self._since_us:
                    return
            else:
                self._scanner.taint()
        self._reader.seek_realtime(self._since_us)

    # -- the interface --------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """One epoll descriptor: the journal's own changes when it is opened anew."""
        return [self._epoll.fileno()]

    def read(self) -> list[Claim]:
        """Claims of the next entries, at most 2,048 of them.  Raises SourceError."""
        try:
            return self._read()
        except OSError as error:
            # A damaged file; the next start goes on at the cursor.
            raise _failed(error) from error

    def _read(self) -> list[Claim]:
        reader, since_us = self._reader, self._since_us
        self._stale |= reader.process() == journal.INVALIDATE
        claims: list[Claim] = []
        lines: list[bytes] = []
        count = 0
        # get_next() would build every field of an entry: an eighth of the speed.
        while count < _ENTRIES_PER_READ and reader._next():
            count += 1
            line = _field(reader, "MESSAGE")
            old = reader._get_realtime() < since_us
            if not old and line is not None and _is_whole(reader, line):
                lines.append(line)
                continue
            claims += self._scan(lines)
            lines = []
            if not old:
                self.counters.lines += 1
                self.counters.unparsed += 1
                self._scanner.taint()
        claims += self._scan(lines)
        if count:
            self._cursor = reader._get_cursor()
            self._found_any = True
        self.more = count == _ENTRIES_PER_READ
        self.replaying = self.replaying and self.more
        return claims

    def _scan(self, lines: list[bytes]) -> list[Claim]:
        return self._scanner.scan(b"\n".join([*lines, b""])) if lines else []

    def tick(self) -> str | None:
        """Open the journal anew after a rotation; say once when there is nothing to read."""
        # Not every change of the journal's files wakes us.
        self.more = True
        if self._stale or (not self._found_any and time.monotonic() >= self._next_open):
            self._open()
        if self._found_any:
            self._told = False
            return None
        if self._told:
            return None
        self._told = True
        what = " ".join(f"{field}={value}" for field, value in self._matches.items())
        return (
            f"the journal holds no entry with {what} that uid {os.geteuid()} can read; waiting "
            "for one. The agent needs the group systemd-journal, and the proxy's config "
            '"log": {"access": ""} under that unit or container'
        )

    def checkpoint(self) -> Any:
        """The last entry's cursor, and how far distrust reaches behind it."""
        if self._cursor is None:
            return None
        return {"cursor": self._cursor, "taint": self._scanner.taint_left}

    def close(self) -> None:
        """Release descriptors."""
        self._reader.close()
        self._epoll.close()


def _failed(error: OSError) -> SourceError:
    return SourceError(f"the journal cannot be read: {os.strerror(error.errno or 0)}")


def _field(reader: Any, name: str) -> bytes | None:
    try:
        value: bytes = reader._get(name)
    except KeyError:
        return None
    return value


def _is_whole(reader: Any, line: bytes) -> bool:
    """Whether an entry is one whole line of the stream.

    journald cuts at NUL bytes, at its greatest length and at the writer's end; Docker at 16 KiB.
    What stands behind such a cut may be a stranger's text from its first byte on.
    """
    return (
        len(line) <= MAX_LINE_BYTES
        and b"\n" not in line
        and _field(reader, "_LINE_BREAK") is None
        and _field(reader, "CONTAINER_PARTIAL_MESSAGE") is None
    )
