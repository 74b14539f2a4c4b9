"""The access log in the systemd journal: by unit, or by the name of a container.

journald splits a stream at newlines and keeps their order, so that the entries go through the
same Scanner as a file's lines, one for each stream.  Where it has cut a line itself, the line is
no line.  When an entry came, journald says itself, by both clocks; nobody else can.
"""

from __future__ import annotations

import math
import os
import select
import time
from typing import Any

from systemd import journal

from ..core.claims.accesslog import (
    MAX_LINE_BYTES,
    Claim,
    Counters,
    Scanner,
    Stranger,
    begin_stream,
    is_start,
)
from ..core.claims.stamp import QUARTER_S, SLACK_S
from ..errors import SourceError
from .clock import boot_id

_ENTRIES_PER_READ = 2_048
#: How many entries are read after a restart, at most; and how many without a cursor.
REPLAY_ENTRIES = 262_144
FIRST_LOOK_ENTRIES = 16_384
#: A cursor younger than this needs no bound.
_YOUNG_S = 600.0
#: While nothing was ever found: how often the journal is opened anew.
_REOPEN_S = 10.0
#: A line may wait for journald, which restarts now and then.
_DELAY_S = 30.0
#: Entries of one read are not further apart, so that stamps are unambiguous within it.
_SPAN_S = QUARTER_S - 2 * _DELAY_S
_MAX_STREAMS = 64


def unit_matches(unit: str) -> dict[str, str]:
    """Entries that a unit's processes wrote; journald itself fills in the field."""
    return {"_SYSTEMD_UNIT": unit}


def container_matches(name: str) -> dict[str, str]:
    """Entries of Docker's or Podman's journald log driver.

    Everybody may write CONTAINER_NAME; that the writer is root, journald itself says.
    """
    return {"CONTAINER_NAME": name, "_UID": "0"}


def matches_of(unit: str, container: str) -> dict[str, str]:
    """Entries of a unit, or without one of a container."""
    return unit_matches(unit) if unit else container_matches(container)


class JournalSource:
    """Claims from journal entries that match."""

    def __init__(
        self,
        matches: dict[str, str],
        checkpoint: Any = None,
        replay_since_s: float | None = None,
        directory: str | None = None,
        scanner: type[Scanner] = Scanner,
    ) -> None:
        """``checkpoint`` is what an earlier run saved: reading goes on there.

        Without one the last 16,384 entries are read; 262,144 if lines since ``replay_since_s``
        are asked for.  ``directory``: not the system's journal; ``scanner`` knows
        the log's grammar.
        """
        self.more = False
        self.replaying = True
        self.counters = Counters()
        self.strangers: list[Stranger] = []
        now = time.monotonic()
        self.window = now, now
        self.epoch_offset_s: float | None = None
        self._matches, self._directory, self._grammar = matches, directory, scanner
        self._boot = bytes.fromhex(boot_id().replace("-", ""))
        self._first_look = FIRST_LOOK_ENTRIES if replay_since_s is None else REPLAY_ENTRIES
        self._cursor: str | None = None
        #: By stream, the one that was silent for longest first.
        self._scanners: dict[bytes, Scanner] = {}
        #: Whether the start of a stream that is not among them was before what we see.
        self._within = False
        #: Nothing older is in the journal.
        self._all_seen = False
        if checkpoint:
            self._cursor = str(checkpoint["cursor"])
            self._restore(checkpoint["taint"])
        #: What to add to CLOCK_MONOTONIC, as the last entry has it.
        self._offset_s: float | None = None
        #: The reader stands before an entry that is still to be given.
        self._held = False
        self._found_any = self._told = False
        self._stale = False
        self._reader: Any = None
        self._next_open = 0.0
        self._epoll = select.epoll()
        self._open()

    def _restore(self, taint: Any) -> None:
        """How far distrust reaches in each stream."""
        if not isinstance(taint, dict):
            self._within = True
            return
        for stream, saved in taint.items():
            self._scanner(stream.encode()).restore(saved)

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
            self._held = False
            self._seek()
        except OSError as error:
            raise _failed(error) from error
        self._stale = False
        self._next_open = time.monotonic() + _REOPEN_S

    def _seek(self) -> None:
        """Stand at the cursor, or so many entries before the end as may be read."""
        reader = self._reader
        if self._cursor is not None:
            reader.seek_cursor(self._cursor)
            if not reader._next():
                return
            if not reader.test_cursor(self._cursor):
                # Vacuumed away: what is left is newer, and began in what is gone.
                self._distrust()
                self._held = True
            if reader._get_realtime() > (time.time() - _YOUNG_S) * 1e6:
                return
        if not self._found_any:
            reader.seek_head()
            return
        at = reader._get_cursor() if self._cursor is not None else None
        since = reader._get_realtime() if at is not None else 0
        reader.seek_tail()
        wanted = REPLAY_ENTRIES if at is not None else self._first_look
        if reader._previous(wanted) < wanted and at is None:
            # All that the journal has.  A stream that begins as an engine does has its beginning.
            self._distrust()
            self._all_seen = self._held = True
            return
        if at is None or reader._get_realtime() > since:
            self._distrust()
            self._held = True
            return
        reader.seek_cursor(at)
        reader._next()

    def _distrust(self) -> None:
        """What comes now may be the rest of what was not seen, in whichever stream."""
        self._scanners.clear()
        self._within = True

    def _scanner(self, stream: bytes, first: bytes = b"") -> Scanner:
        scanner = self._scanners.pop(stream, None)
        if scanner is None:
            scanner = self._grammar(self.counters, begin_stream())
            if self._within and not (self._all_seen and is_start(first)):
                scanner.begin_within()
            if len(self._scanners) >= _MAX_STREAMS:
                quiet = (key for key, one in self._scanners.items() if not one.taint_left)
                del self._scanners[next(quiet, next(iter(self._scanners)))]
        self._scanners[stream] = scanner
        return scanner

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
        reader = self._reader
        self._stale |= reader.process() == journal.INVALIDATE
        claims: list[Claim] = []
        self.strangers = []
        lines: list[bytes] = []
        stream = b""
        times = _Times(self._boot, self._offset_s)
        count = 0
        # get_next() would build every field of an entry: an eighth of the speed.
        while count < _ENTRIES_PER_READ and (self._held or reader._next()):
            self._held = not times.add(reader._get_realtime(), *reader._get_monotonic())
            if self._held:
                break  # it is too far from the others; the next read takes it
            count += 1
            line = _field(reader, "MESSAGE")
            of = _field(reader, "_STREAM_ID") or _field(reader, "CONTAINER_ID_FULL") or b""
            whole = line is not None and _is_whole(reader, line)
            if lines and (of != stream or not whole):
                claims += self._scan(stream, lines)
                lines = []
            stream = of
            if whole and line is not None:
                lines.append(line)
            else:
                self._cut(stream, reader)
        if lines:
            claims += self._scan(stream, lines)
        if count:
            self._cursor = reader._get_cursor() if not self._held else self._cursor_before()
            self._found_any = True
            self._offset_s = times.offset_s
        self.window, self.epoch_offset_s = times.window(), times.epoch_offset_s
        self.more = self._held or count == _ENTRIES_PER_READ
        if not self.more:
            self.replaying = False
            self._within = self._all_seen = False  # whatever stream comes now begins now
        return claims

    def _cursor_before(self) -> str:
        """The cursor of the last entry that was given; the reader stands at the next one."""
        self._reader._previous()
        cursor: str = self._reader._get_cursor()
        self._reader._next()
        return cursor

    def _scan(self, stream: bytes, lines: list[bytes]) -> list[Claim]:
        scanner = self._scanner(stream, lines[0])
        claims = scanner.scan(b"\n".join([*lines, b""]))
        if scanner.strangers:
            self.strangers += scanner.strangers
            scanner.strangers = []
        return claims

    def _cut(self, stream: bytes, reader: Any) -> None:
        """A line that lacks something; what comes next may be a stranger's, too."""
        self.counters.lines += 1
        if _field(reader, "_LINE_BREAK") in (b"eof", b"pid-change"):
            self.counters.torn += 1  # its writer ended: nothing more comes of it
            return
        self.counters.unparsed += 1
        self._scanner(stream).taint()

    def settled(self) -> None:
        """Nobody waits for a line of theirs."""

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
        return self.waiting

    @property
    def waiting(self) -> str:
        """That there is no entry of ours, and what it takes to see one."""
        if self._found_any:
            return ""
        what = " ".join(f"{field}={value}" for field, value in self._matches.items())
        return (
            f"the journal holds no entry with {what} that uid {os.geteuid()} can read; waiting "
            "for one. The agent needs the group systemd-journal, and the proxy's config "
            f"{self._grammar.needs_in_journal} under that unit or container"
        )

    def checkpoint(self) -> Any:
        """The last entry's cursor, and how far distrust reaches after it in each stream."""
        if self._cursor is None:
            return None
        taint = {
            stream.decode("ascii", "replace"): scanner.save()
            for stream, scanner in self._scanners.items()
            if scanner.taint_left or scanner.mixed or scanner.dns_log
        }
        return {"cursor": self._cursor, "taint": taint}

    def close(self) -> None:
        """Release descriptors."""
        self._reader.close()
        self._epoll.close()


class _Times:
    """When the entries of one read came."""

    def __init__(self, boot: bytes, offset_s: float | None) -> None:
        self._boot = boot
        #: What to add to CLOCK_MONOTONIC, as the entry before had it.
        self.offset_s = offset_s
        self._first_s = self._last_s = 0.0
        self._ours: bool | None = None
        self._stepped = False

    def add(self, realtime_us: int, monotonic_us: int, boot: Any) -> bool:
        """Take one entry's times; False if it does not belong to the same window."""
        now_s, ours = monotonic_us / 1e6, getattr(boot, "bytes", boot) == self._boot
        if self._ours is None:
            self._ours, self._first_s = ours, now_s
        elif ours is not self._ours or now_s - self._first_s > _SPAN_S:
            return False
        self._last_s = now_s
        offset_s = realtime_us / 1e6 - now_s
        if self.offset_s is not None and abs(offset_s - self.offset_s) > SLACK_S:
            self._stepped = True
        self.offset_s = offset_s
        return True

    def window(self) -> tuple[float, float]:
        """Between when the entries were written.  What was before this boot was before 0."""
        if self._ours is None:
            now = time.monotonic()
            return now, now
        if not self._ours:
            return -math.inf, 0.0
        return self._first_s - _DELAY_S, self._last_s

    @property
    def epoch_offset_s(self) -> float | None:
        """What to add to CLOCK_MONOTONIC; None if the clock was set meanwhile."""
        return None if self._stepped or not self._ours else self.offset_s


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
    What comes after such a cut may be a stranger's text from its first byte on.
    """
    return (
        len(line) <= MAX_LINE_BYTES
        and b"\n" not in line
        and _field(reader, "_LINE_BREAK") is None
        and _field(reader, "CONTAINER_PARTIAL_MESSAGE") is None
    )
