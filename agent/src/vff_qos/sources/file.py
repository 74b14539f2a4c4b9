"""The access log as a file: held descriptors, inotify, rotation, replay after a restart.

A rename rotation loses nothing because the old inode stays open: Xray goes on writing to it
until a minute or two of silence, so old and new are read side by side.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import Any

from inotify_simple import Event, INotify
from inotify_simple import flags as inotify_flags

from ..core.claims.accesslog import Claim, Counters, Scanner
from ..core.claims.lines import FINGERPRINT_BYTES, Assembler, Change, Identity, judge_change
from ..errors import SourceError

#: A stale line can meet a reused tuple, so that replay after a restart is bounded in age.
REPLAY_S = 60.0

_BLOCK_BYTES = 1 << 17
#: Without a checkpoint: how far back to look for lines that are young enough.
_FIRST_LOOK_BYTES = 4 << 20
#: Xray keeps writing to a renamed file until 1 to 2 minutes of silence.
_OLD_FILE_S = 300.0
_MAX_OLD_FILES = 4

_DIR_EVENTS = (
    inotify_flags.CREATE | inotify_flags.MOVED_TO | inotify_flags.MOVED_FROM | inotify_flags.DELETE
)


class _Tail:
    """One inode of the log, open."""

    def __init__(self, path: str, offset: int) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise SourceError(f"{path}: is not a regular file")
        self.device, self.inode = status.st_dev, status.st_ino
        self.offset = offset
        self.fingerprint = b""
        self.assembler = Assembler()
        self.scanner = Scanner()
        self.watch = -1
        self.quiet_since = 0.0
        self.update_fingerprint()

    def update_fingerprint(self) -> None:
        """Take more of the beginning while the file is short."""
        if len(self.fingerprint) < FINGERPRINT_BYTES:
            self.fingerprint = os.pread(self.fd, FINGERPRINT_BYTES, 0)

    def identity(self) -> Identity:
        return Identity(self.device, self.inode, self.fingerprint)

    def checkpoint(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "inode": self.inode,
            "offset": self.offset - self.assembler.pending,
            "fingerprint": self.fingerprint.hex(),
        }


class FileSource:
    """Claims from an access log at ``path``."""

    def __init__(
        self,
        path: str,
        checkpoint: Any = None,
        replay_since_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``checkpoint`` is what an earlier run saved.

        Lines older than 60 s, or than ``replay_since_s`` (epoch) if that is longer ago, are not
        replayed.  A missing file is waited for; raises SourceError if it cannot be read.
        """
        self.path = path
        self.counters = Counters()
        self.more = False
        self.replaying = True
        self._clock = clock
        # Stamps may lack fractions of a second.
        self._since_s = min(clock() - REPLAY_S, (replay_since_s or clock()) - 1)
        self._zone_s: float | None = None
        self._times: dict[bytes, float] = {}
        self._inotify = INotify(nonblocking=True)
        self._dir_watch = -1
        self._tails: list[_Tail] = []
        self._retired = Counters()
        #: Nothing stands at the path.
        self.missing = self._told_missing = False
        self._resume(checkpoint)
        self.missing = not self._look_at_path()

    # -- opening --------------------------------------------------------------------------------

    def _resume(self, checkpoint: Any) -> None:
        """Open the inodes of the checkpoint, wherever rotation has moved them."""
        directory, name = os.path.split(self.path)
        for saved in checkpoint or []:
            for candidate in self._candidates(directory, name):
                if self._matches(candidate, saved):
                    self._open(candidate, int(saved["offset"]))
                    break

    @staticmethod
    def _candidates(directory: str, name: str) -> list[str]:
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            return []
        return [
            os.path.join(directory, entry) for entry in sorted(entries) if entry.startswith(name)
        ]

    @staticmethod
    def _matches(path: str, saved: dict[str, Any]) -> bool:
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) != (saved["device"], saved["inode"]):
                return False
            with open(path, "rb") as file:
                first = file.read(FINGERPRINT_BYTES)
        except OSError:
            # Gone or unreadable meanwhile: then it is not the file of the checkpoint.
            return False
        return (
            first.startswith(bytes.fromhex(saved["fingerprint"]))
            and status.st_size >= saved["offset"]
        )

    def _open(self, path: str, offset: int) -> None:
        try:
            tail = _Tail(path, offset)
        except PermissionError as error:
            status = os.stat(path)
            raise SourceError(
                f"{path}: cannot be read by uid {os.geteuid()}: it belongs to uid {status.st_uid}, "
                f"mode {stat.S_IMODE(status.st_mode):04o}; the agent needs CAP_DAC_READ_SEARCH "
                "or a group that may read it"
            ) from error
        tail.watch = self._inotify.add_watch(f"/proc/self/fd/{tail.fd}", inotify_flags.MODIFY)
        tail.quiet_since = self._clock()
        self._tails.append(tail)

    def _first_offset(self) -> int:
        """Where to begin in a file that no checkpoint knows: young lines may be at its end."""
        size = os.stat(self.path).st_size
        if size <= _FIRST_LOOK_BYTES:
            return 0
        with open(self.path, "rb") as file:
            file.seek(size - _FIRST_LOOK_BYTES)
            file.readline()
            return file.tell()

    # -- the interface --------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """The inotify descriptor."""
        return [self._inotify.fileno()]

    def read(self) -> list[Claim]:
        """Claims of what was appended to any inode of the log; at most 128 KiB of each."""
        events = [e for e in self._inotify.read(timeout=0) if e.wd == self._dir_watch]
        if events:
            self._look_at_renamed(events)
            self._look_at_path()
        claims: list[Claim] = []
        self.more = False
        for tail in self._tails:
            data = os.pread(tail.fd, _BLOCK_BYTES, tail.offset)
            if not data:
                continue
            if tail.offset == 0 or len(tail.fingerprint) < FINGERPRINT_BYTES:
                tail.update_fingerprint()
            tail.offset += len(data)
            tail.quiet_since = self._clock()
            self.more |= len(data) == _BLOCK_BYTES
            overlong = tail.assembler.overlong
            block = tail.assembler.feed(data)
            if tail.assembler.overlong != overlong:
                tail.scanner.taint()
            if block:
                claims += tail.scanner.scan(block)
        if self.replaying:
            claims = [claim for claim in claims if self._young(claim.time)]
            self.replaying = self.more
        return claims

    def tick(self) -> str | None:
        """Follow rotations and truncation; complain once when the log is missing."""
        now = self._clock()
        present = self._look_at_path()
        for tail in list(self._tails):
            first = os.pread(tail.fd, FINGERPRINT_BYTES, 0)
            size = os.fstat(tail.fd).st_size
            if judge_change(tail.identity(), tail.offset, size, first, None) is Change.TRUNCATED:
                tail.offset = 0
                tail.fingerprint = first
                tail.assembler.reset()
        while (
            not self.more
            and len(self._tails) > 1
            and (
                len(self._tails) > _MAX_OLD_FILES + 1
                or now - self._tails[0].quiet_since > _OLD_FILE_S
            )
        ):
            self._close_tail(self._tails.pop(0))
        self._sum_counters()
        if present:
            self.missing = self._told_missing = False
            return None
        self.missing = True
        if not self._told_missing:
            self._told_missing = True
            return (
                f"{self.path}: there is no such log; waiting for it. The proxy writes it when its "
                'config has "log": {"access": "' + self.path + '"}'
            )
        return None

    def checkpoint(self) -> Any:
        """Inode, offset of the last whole line and fingerprint of each open file."""
        return [tail.checkpoint() for tail in self._tails]

    def close(self) -> None:
        """Release all descriptors."""
        self._sum_counters()
        for tail in self._tails:
            os.close(tail.fd)
        self._inotify.close()

    # -- helpers --------------------------------------------------------------------------------

    def _look_at_path(self) -> bool:
        """Open what stands at the path if it is new; whether anything stands there."""
        self._watch_directory()
        # A file that appears after the first look is new: everything in it counts.
        fresh = bool(self._tails) or self.missing
        return self._open_unknown(self.path, 0 if fresh else None)

    def _look_at_renamed(self, events: list[Event]) -> None:
        """Open logs that were made and renamed again before we looked.

        Only what was renamed from our path counts: a copy (copytruncate, gzip) is not new.
        """
        names, moving = {os.path.basename(self.path)}, set()
        for event in events:
            if event.mask & inotify_flags.MOVED_FROM and event.name in names:
                moving.add(event.cookie)
            elif event.mask & inotify_flags.MOVED_TO and event.cookie in moving:
                names.add(event.name)
        for name in names - {os.path.basename(self.path)}:
            self._open_unknown(os.path.join(os.path.dirname(self.path), name), 0)

    def _open_unknown(self, path: str, offset: int | None) -> bool:
        """Open a log whose inode is not open yet; whether anything stands there.

        ``offset`` None: where young lines may begin.
        """
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise SourceError(f"{path}: {os.strerror(error.errno or 0)}") from error
        if all((tail.device, tail.inode) != (status.st_dev, status.st_ino) for tail in self._tails):
            self._open(path, self._first_offset() if offset is None else offset)
        return True

    def _watch_directory(self) -> None:
        directory = os.path.dirname(self.path)
        try:
            self._dir_watch = self._inotify.add_watch(directory, _DIR_EVENTS)
        except FileNotFoundError:
            self._dir_watch = -1

    def _close_tail(self, tail: _Tail) -> None:
        self._add(self._retired, tail.scanner.counters, tail.assembler.overlong)
        os.close(tail.fd)

    @staticmethod
    def _add(total: Counters, part: Counters, overlong: int) -> None:
        for name, value in vars(part).items():
            setattr(total, name, getattr(total, name) + value)
        total.unparsed += overlong

    def _sum_counters(self) -> None:
        total = Counters()
        self._add(total, self._retired, 0)
        for tail in self._tails:
            self._add(total, tail.scanner.counters, tail.assembler.overlong)
        self.counters = total

    def _young(self, stamp: bytes) -> bool:
        """Whether a line of the past is young enough to be replayed."""
        when = self._times.get(stamp)
        if when is None:
            if len(self._times) > 10_000:
                self._times.clear()
            when = self._times[stamp] = _epoch(stamp)
        if self._zone_s is None:
            self._zone_s = self._zone_difference()
        return when + self._zone_s >= self._since_s

    def _zone_difference(self) -> float:
        """How far the log's local time is from ours: a container often runs in UTC.

        The last line was written when the file was last modified; zones differ by quarters of
        an hour.
        """
        for tail in reversed(self._tails):
            status = os.fstat(tail.fd)
            end = os.pread(tail.fd, 8_192, max(0, status.st_size - 8_192))
            for line in reversed(end.splitlines()):
                try:
                    written = _epoch(line[:19])
                except ValueError:
                    continue
                return round((status.st_mtime - written) / 900) * 900.0
        return 0.0


def _epoch(stamp: bytes) -> float:
    """Seconds since the epoch of ``2026/11/20 15:48:00`` in our local zone."""
    return time.mktime(
        (
            int(stamp[0:4]),
            int(stamp[5:7]),
            int(stamp[8:10]),
            int(stamp[11:13]),
            int(stamp[14:16]),
            int(stamp[17:19]),
            0,
            0,
            -1,
        )
    )
