"""The access log as a file: held descriptors, inotify, rotation, replay after a restart.

A rename rotation loses nothing because the old inode stays open: Xray goes on writing to it
until a minute or two of silence, so old and new are read side by side.

No line is left out because of its age.  Its stamp may be a stranger's, and of an unknown zone; so
``window`` says between which looks at the file it was written.

Longer than 400 lines: rotation, restart and the window share the state of the held descriptors.
"""

from __future__ import annotations

import math
import os
import stat
from typing import Any

from inotify_simple import Event, INotify
from inotify_simple import flags as inotify_flags

from ..core.claims.accesslog import Claim, Counters, Scanner, Stranger, begin_stream
from ..core.claims.lines import Assembler
from ..core.claims.rotation import (
    FINGERPRINT_BYTES,
    FileBeside,
    beside,
    came_between,
    find,
    is_truncated,
)
from ..errors import SourceError
from .clock import Clock

#: How much is read again after a restart, at most.
REPLAY_BYTES = 64 << 20
#: Without a checkpoint: how far back to look for the lines of live flows.
FIRST_LOOK_BYTES = 4 << 20

_BLOCK_BYTES = 1 << 16
#: Xray keeps writing to a renamed file until 1 to 2 minutes of silence.
_OLD_FILE_S = 300.0
_MAX_OLD_FILES = 4
#: While nothing is written, the checkpoint says so only this often: each time costs a write.
_IDLE_SAVE_S = 60.0

_DIR_EVENTS = (
    inotify_flags.CREATE | inotify_flags.MOVED_TO | inotify_flags.MOVED_FROM | inotify_flags.DELETE
)


class _Tail:
    """One inode of the log, open."""

    def __init__(self, path: str, since_s: float, position: int, scanner: type[Scanner]) -> None:
        """``since_s``: nothing that is to be read was written before."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise SourceError(f"{path}: is not a regular file")
        self.device, self.inode = status.st_dev, status.st_ino
        self.offset = 0
        self.fingerprint = b""
        self.assembler = Assembler()
        self.scanner = scanner(position=position)
        #: The file that was the log before this one, until that one is read to its end.
        self.after: _Tail | None = None
        self.watch = -1
        self.quiet_since = 0.0
        #: What is unread or unfinished was written after the first, what is unread after the other.
        self.since_s = self._end_s = since_s
        #: The first of these as the checkpoint has it, and up to where.
        self._saved: dict[str, Any] = {}
        self._saved_s, self._saved_offset = -math.inf, -1
        #: Nothing was left at the last look.
        self.at_end = False
        self._update_fingerprint()

    def go_on(self, saved: dict[str, Any]) -> None:
        """Begin where a checkpoint says."""
        self.offset = int(saved["offset"])
        self.assembler.dropping = bool(saved.get("dropping"))
        self.scanner.restore(saved)

    def skip_to(self, offset: int) -> None:
        """Begin in the middle: what stands before may be of a stranger's text."""
        self.offset = offset
        self.assembler.dropping = True
        self.scanner.begin_within()

    def read(self, now: float) -> list[Claim]:
        """Claims of the next block; none at the end."""
        data = os.pread(self.fd, _BLOCK_BYTES, self.offset)
        if self.offset and self.is_truncated():
            self.restart()
            data = os.pread(self.fd, _BLOCK_BYTES, 0)
        self.at_end = len(data) < _BLOCK_BYTES
        claims: list[Claim] = []
        unfinished_before = self.assembler.pending > 0 or self.assembler.dropping
        if data:
            if not self.offset:
                self.fingerprint = data[:FINGERPRINT_BYTES]
            self._update_fingerprint()
            self.offset += len(data)
            self.quiet_since = now
            overlong = self.assembler.overlong
            block = self.assembler.feed(data)
            if self.assembler.overlong != overlong:
                self.scanner.taint()
            if block:
                claims = self.scanner.scan(block)
                unfinished_before = False
        self._move_on(now, unfinished_before)
        return claims

    def _move_on(self, now: float, unfinished_before: bool) -> None:
        """What will be read later was written after which time?"""
        unfinished = self.assembler.pending > 0 or self.assembler.dropping
        if not unfinished:
            self.since_s = now if self.at_end else self._end_s
        elif not unfinished_before:
            self.since_s = self._end_s  # it began after the end that was seen last
        if self.at_end:
            self._end_s = now

    def look_at_end(self, now: float) -> None:
        """While nothing is written, time goes on."""
        self.at_end = os.fstat(self.fd).st_size == self.offset
        if self.at_end:
            self._end_s = now
            if not (self.assembler.pending or self.assembler.dropping):
                self.since_s = now

    def restart(self) -> None:
        """The file was truncated; what stands there now began at its start."""
        self.offset = 0
        self.fingerprint = b""
        self._update_fingerprint()
        self.assembler.reset()

    def _update_fingerprint(self) -> None:
        """Take more of the beginning while the file is short."""
        if len(self.fingerprint) < FINGERPRINT_BYTES:
            self.fingerprint = os.pread(self.fd, FINGERPRINT_BYTES, 0)

    def is_truncated(self) -> bool:
        """Whether the file was written anew from its start."""
        first = os.pread(self.fd, FINGERPRINT_BYTES, 0)
        size = os.fstat(self.fd).st_size
        return is_truncated(self.fingerprint, self.offset, size, first)

    def checkpoint(self, clock: Clock) -> dict[str, Any]:
        """Where to go on."""
        self._update_fingerprint()
        offset = self.offset - self.assembler.pending
        if self.since_s > self._saved_s and (
            offset != self._saved_offset or self.since_s > self._saved_s + _IDLE_SAVE_S
        ):
            self._saved, self._saved_s = clock.save(self.since_s), self.since_s
            self._saved_offset = offset
        return {
            "device": self.device,
            "inode": self.inode,
            "offset": offset,
            "fingerprint": self.fingerprint.hex(),
            "dropping": self.assembler.dropping,
            **self.scanner.save(),
            **self._saved,
        }


def _look_into(path: str, flags: int) -> FileBeside | None:
    """A file and what it begins with; None if it is gone meanwhile, unreadable or no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except OSError:
        return None  # then it is none that was read
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        return FileBeside(os.path.basename(path), *identity, os.pread(fd, FINGERPRINT_BYTES, 0))
    finally:
        os.close(fd)


class FileSource:
    """Claims from an access log at ``path``."""

    def __init__(
        self,
        path: str,
        checkpoint: Any = None,
        replay_since_s: float | None = None,
        clock: Clock | None = None,
        scanner: type[Scanner] = Scanner,
    ) -> None:
        """``checkpoint`` is what an earlier run saved: reading goes on there.  ``scanner`` knows
        the log's grammar.

        Without one the last 4 MiB are read; 64 MiB if lines since ``replay_since_s`` (epoch) are
        asked for.  A missing file is waited for; raises SourceError if it cannot be read.
        """
        self.path = path
        self._parent, self._name = os.path.split(path)
        self._stem = os.path.splitext(self._name)[0]
        self.counters = Counters()
        self.more = False
        self.replaying = True
        self.strangers: list[Stranger] = []
        self._clock, self._scanner = clock or Clock(), scanner
        now = self._clock.now()
        self.window = now, now
        self.epoch_offset_s: float | None = self._clock.offset_s
        self._first_look = FIRST_LOOK_BYTES
        if checkpoint or replay_since_s is not None:
            self._first_look = REPLAY_BYTES
        #: What appears at the path was written after this.
        self._looked_s = -math.inf
        #: What the log was when it was saved, if that file is gone.
        self._gone: dict[str, Any] = {}
        #: What lies beside the log and is not new; None: too much.
        self._beside: list[int] | None = None
        #: Something was moved or made there since.
        self._is_moved = False
        self._starting = True
        self._inotify = INotify(nonblocking=True)
        #: Of the directory of this device and inode.
        self._dir_watch, self._directory = -1, (-1, -1)
        self._tails: list[_Tail] = []
        self._retired = Counters()
        self._is_summed = False
        #: Nothing stands at the path.
        self.missing = self._told_missing = False
        try:
            self._resume(checkpoint or [])
            self.missing = not self._look_at_path()
        except SourceError:
            self.close()
            raise
        self._starting = False

    # -- opening --------------------------------------------------------------------------------

    def _resume(self, checkpoint: list[dict[str, Any]]) -> None:
        """Open the inodes of the checkpoint, wherever rotation has moved them, and what was the log
        after them."""
        files = self._look_beside()
        known: list[int] | None = checkpoint[-1].get("beside") if checkpoint else None
        for saved in checkpoint:
            since_s = self._clock.restore(saved)
            # What is not among them has become the log after that time.
            self._looked_s = max(self._looked_s, since_s)
            found = find(saved, files, self._name, known or ())
            tail = self._open_found(found, since_s) if found is not None else None
            if tail is None:
                self._gone = saved
                continue
            tail.go_on(saved)
            if not tail.offset:
                self._follows(tail)
            self._bound(tail, REPLAY_BYTES)
            self._gone = {}
        self._open_between(files, known, [bytes.fromhex(s["fingerprint"]) for s in checkpoint])
        self._beside = beside(files, self._name)

    def _open_found(self, file: FileBeside, since_s: float) -> _Tail | None:
        """None if it has gone meanwhile."""
        try:
            return self._open(os.path.join(self._parent, file.name), since_s)
        except FileNotFoundError:
            return None

    def _open_between(
        self, files: list[FileBeside], known: list[int] | None, others: list[bytes]
    ) -> None:
        """Open logs that were made and renamed again while nobody looked."""
        if known is None:
            return
        others = others + [tail.fingerprint for tail in self._tails]
        found, have = came_between(files, self._name, known, others), len(self._tails)
        for file in found[-_MAX_OLD_FILES:]:
            self._open_unknown(os.path.join(self._parent, file.name))
        if len(found) > _MAX_OLD_FILES and len(self._tails) > have:
            # What stands before it is not read, and may be of a stranger's text.
            self._tails[have].scanner.begin_within()

    def _look_beside(self) -> list[FileBeside]:
        """Logs, copies and former logs in the log's directory."""
        try:
            names = os.listdir(self._parent)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise SourceError(
                f"{self._parent}: cannot be listed by uid {os.geteuid()}; the agent needs "
                "CAP_DAC_READ_SEARCH or a group that may read it"
            ) from error
        # A container's links would lead to files of the host.
        looks = (
            _look_into(os.path.join(self._parent, name), name != self._name and os.O_NOFOLLOW)
            for name in sorted(names)
            if name.startswith(self._stem)
        )
        return [file for file in looks if file is not None]

    def _take_stock(self) -> None:
        """Note what lies beside the log: who begins again knows by it what came later."""
        found, self._is_moved = beside(self._look_beside(), self._name), False
        # All that was there has been told of by now, and is open if it is new.
        self.more |= self._hear()
        self._beside = found

    def _open(self, path: str, since_s: float) -> _Tail:
        try:
            tail = _Tail(path, since_s, begin_stream(), self._scanner)
        except PermissionError as error:
            status = os.stat(path)
            raise SourceError(
                f"{path}: cannot be read by uid {os.geteuid()}: it belongs to uid {status.st_uid}, "
                f"mode {stat.S_IMODE(status.st_mode):04o}; the agent needs CAP_DAC_READ_SEARCH "
                "or a group that may read it"
            ) from error
        tail.watch = self._inotify.add_watch(f"/proc/self/fd/{tail.fd}", inotify_flags.MODIFY)
        tail.quiet_since = self._clock.now()
        self._tails.append(tail)
        return tail

    def _follows(self, tail: _Tail) -> None:
        """A file that began when another one ended."""
        if self._gone:
            tail.scanner.restore(self._gone)
            self._gone = {}
        elif len(self._tails) > 1:
            tail.after = self._tails[-2]

    @staticmethod
    def _bound(tail: _Tail, most: int) -> None:
        """Leave out what is older than the last ``most`` bytes."""
        size = os.fstat(tail.fd).st_size
        if size - tail.offset > most:
            tail.skip_to(size - most)

    # -- the interface --------------------------------------------------------------------------

    @property
    def waiting(self) -> str:
        """That there is no log, and how one is made."""
        if not self.missing:
            return ""
        return (
            f"{self.path}: there is no such log; waiting for it. The proxy writes it when its "
            f"config has {self._scanner.needs_in_file % self.path}"
        )

    def descriptors(self) -> list[int]:
        """The inotify descriptor."""
        return [self._inotify.fileno()]

    def read(self) -> list[Claim]:
        """Claims of what was appended to any inode of the log; at most 128 KiB of each."""
        self._hear()
        claims: list[Claim] = []
        self.more = self._is_summed = False
        self.strangers = []
        now = since_s = self._clock.look()
        for tail in self._tails:
            if tail.after is not None:
                # Whoever splits the stream at lines may have split a stranger's text.
                if not tail.after.at_end:
                    self.more = True
                    continue
                tail.scanner.follow(tail.after.scanner)
                tail.after = None
            tail_since_s, offset = tail.since_s, tail.offset
            claims += tail.read(now)
            if tail.offset != offset:
                since_s = min(since_s, tail_since_s)
            self.more |= not tail.at_end
            if tail.scanner.strangers:
                self.strangers += tail.scanner.strangers
                tail.scanner.strangers = []
        self.window = since_s, self._clock.now()
        self.epoch_offset_s = self._clock.offset_since(since_s)
        self.replaying = self.replaying and self.more
        return claims

    def settled(self) -> None:
        """Nobody waits for a line of theirs."""

    def tick(self) -> str | None:
        """Follow rotations and truncation; complain once when the log is missing."""
        now = self._clock.look()
        present = self._look_at_path()
        for tail in self._tails:
            if tail.is_truncated():
                tail.restart()
                self.more = self._is_moved = True
            tail.look_at_end(now)
        if self._is_moved:
            self._take_stock()
        while (
            len(self._tails) > 1
            and self._tails[0].at_end
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
        if self._told_missing:
            return None
        self._told_missing = True
        return self.waiting

    def checkpoint(self) -> Any:
        """Of each open file: what it is, where the last whole line ends, and since when it ends;
        with the last one what lay beside it."""
        if self._is_moved:
            try:
                self._take_stock()
            except SourceError:
                self._beside, self._is_moved = None, True  # the next look tells of it
        places = [tail.checkpoint(self._clock) for tail in self._tails]
        if places and self._beside is not None:
            places[-1]["beside"] = self._beside
        return places

    def close(self) -> None:
        """Release all descriptors."""
        self._sum_counters()
        for tail in self._tails:
            os.close(tail.fd)
        self._inotify.close()

    # -- helpers --------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """What happened in the directory; whether anything did, also to a log: it is to be read."""
        heard = self._inotify.read(timeout=0)
        events = [event for event in heard if event.wd == self._dir_watch]
        if any(event.mask & inotify_flags.Q_OVERFLOW for event in heard):
            self._directory = -1, -1  # whatever happened to it
            self._open_between(self._look_beside(), self._beside, [])
            self._look_at_path()
        elif events:
            self._is_moved |= any(event.name.startswith(self._stem) for event in events)
            if any(event.mask & inotify_flags.IGNORED for event in events):
                self._directory = -1, -1  # the next one may have its inode
            self._look_at_renamed(events)
            self._look_at_path()
        return bool(heard)

    def _look_at_path(self) -> bool:
        """Open what stands at the path if it is new; whether anything stands there."""
        now = self._clock.now()
        self._watch_directory()
        present = self._open_unknown(self.path)
        self._looked_s = now
        return present

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
            self._open_unknown(os.path.join(os.path.dirname(self.path), name))

    def _open_unknown(self, path: str) -> bool:
        """Open a log whose inode is not open yet; whether anything stands there."""
        try:
            status = os.stat(path)
            held = ((tail.device, tail.inode) for tail in self._tails)
            if (status.st_dev, status.st_ino) in held:
                return True
            tail = self._open(path, self._looked_s)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SourceError(f"{path}: {os.strerror(error.errno or 0)}") from error
        self._follows(tail)
        # A file that appears after the first look is new: everything in it counts.
        if self._starting:
            self._bound(tail, self._first_look)
        return True

    def _watch_directory(self) -> None:
        directory = os.path.dirname(self.path)
        try:
            status = os.stat(directory)
            if self._directory != (status.st_dev, status.st_ino):
                self._dir_watch = self._inotify.add_watch(directory, _DIR_EVENTS)
                self._directory = status.st_dev, status.st_ino
                self._is_moved = True  # it may have come with what lies in it
        except FileNotFoundError:
            self._dir_watch, self._directory = -1, (-1, -1)

    def _close_tail(self, tail: _Tail) -> None:
        self._add(self._retired, tail.scanner.counters, tail.assembler.overlong)
        self._is_summed = False
        os.close(tail.fd)

    @staticmethod
    def _add(total: Counters, part: Counters, overlong: int) -> None:
        for name, value in vars(part).items():
            setattr(total, name, getattr(total, name) + value)
        total.unparsed += overlong

    def _sum_counters(self) -> None:
        if self._is_summed:
            return
        self._is_summed = True
        total = Counters()
        self._add(total, self._retired, 0)
        for tail in self._tails:
            self._add(total, tail.scanner.counters, tail.assembler.overlong)
        self.counters = total
