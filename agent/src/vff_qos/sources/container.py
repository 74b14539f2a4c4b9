"""The access log inside a Docker or Podman container, through ``/proc/PID/root``.

The runtime's socket would tell everything, and whoever may open it is root on the node.  So the
agent only reads: the runtimes' own books say which id and PID a name has (`runtimes.py`), and the
process's cgroup, which bears the id, says whether that is still true.  This needs
CAP_DAC_READ_SEARCH (the books) and CAP_SYS_PTRACE (``/proc/PID/root``), and writes nothing
anywhere.

A process descriptor tells when the container ends; what its log still holds is read before the
next process of that name is looked for.
"""

from __future__ import annotations

import os
import select
from typing import Any

from ..core.claims.accesslog import Claim, Counters, Scanner, Stranger
from ..errors import SourceError
from .file import FileSource
from .runtimes import Books, Finder, Found, bears_id, find_container, inside

__all__ = ["Books", "ContainerSource", "Found", "find_container"]


class _Process:
    """A container's first process: its descriptor and its root directory, both held."""

    def __init__(self, pidfd: int, root: int) -> None:
        self.pidfd, self._root = pidfd, root

    @classmethod
    def open(cls, found: Found) -> _Process | None:
        """None if the process is gone or the PID is another's now.  Raises SourceError."""
        try:
            pidfd = os.pidfd_open(found.pid)
        except ProcessLookupError:
            return None
        process = cls(pidfd, -1)
        try:
            # From here to the last line the PID is that of one process, if it lives then.
            if bears_id(found.pid, found.container_id):
                process._root = os.open(f"/proc/{found.pid}/root", os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended: no root
        except PermissionError as error:
            # An ended process refuses, too.
            if not process.ended:
                process.close()
                raise SourceError(
                    f"/proc/{found.pid}/root: cannot be opened by uid {os.geteuid()}; to read "
                    "within a container the agent needs CAP_SYS_PTRACE"
                ) from error
        if process._root < 0 or process.ended:
            process.close()
            return None
        return process

    @property
    def ended(self) -> bool:
        """Whether the process has exited (then nothing in its PID namespace lives)."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def path(self, path: str) -> str:
        """A name under which we reach what the process calls ``path``.  Raises SourceError."""
        try:
            return inside(f"/proc/self/fd/{self._root}", path)
        except OSError as error:
            raise SourceError(f"{path}: too many symbolic links, or links in a circle") from error

    def close(self) -> None:
        os.close(self.pidfd)
        if self._root >= 0:
            os.close(self._root)


class ContainerSource:
    """Claims from the log at ``path`` inside the container called ``name``."""

    def __init__(
        self,
        name: str,
        path: str,
        checkpoint: Any = None,
        replay_since_s: float | None = None,
        books: Books | None = None,
        scanner: type[Scanner] = Scanner,
    ) -> None:
        """``checkpoint``, ``replay_since_s`` and ``scanner`` as for FileSource, for what runs now.

        A container that does not run is waited for.  Raises SourceError.
        """
        self.name, self.path, self._scanner = name, path, scanner
        self.counters = Counters()
        self.window = 0.0, 0.0
        self.epoch_offset_s: float | None = None
        self.strangers: list[Stranger] = []
        self._finder = Finder(name, books or Books())
        self._checkpoint = checkpoint
        self._retired = Counters()
        self._process: _Process | None = None
        self._file: FileSource | None = None
        self._told = ""
        self._first = True
        self._epoll = select.epoll()
        self._enter(replay_since_s)

    # -- from one process to the next -----------------------------------------------------------

    def _enter(self, replay_since_s: float | None = None) -> str | None:
        """Open the log of the process that runs now; a sentence if there is none."""
        found = self._finder.look()
        if found is None:
            return (
                f"container {self.name}: neither Docker nor Podman knows it (looked in "
                f"{self._finder.where()}); waiting for it"
            )
        process = _Process.open(found) if found.pid else None
        if process is None:
            return f"container {self.name} does not run; waiting for it"
        self._process = process
        try:
            self._open_file(replay_since_s)
        except SourceError:
            self._process = None
            process.close()
            raise
        self._epoll.register(process.pidfd, select.EPOLLIN)
        return None

    def _open_file(self, replay_since_s: float | None) -> None:
        assert self._process is not None
        path = self._process.path(self.path)
        try:
            self._file = FileSource(path, self._checkpoint, replay_since_s, scanner=self._scanner)
        except SourceError as error:
            raise self._translated(error, path) from error
        self._epoll.register(self._file.descriptors()[0], select.EPOLLIN)

    def _leave_file(self) -> None:
        assert self._file is not None
        self._checkpoint = self._file.checkpoint()
        self._file.close()
        _add(self._retired, self._file.counters)
        self._file = None

    def _leave(self) -> None:
        """The process has ended and its log is read to the end."""
        assert self._process is not None
        self._leave_file()
        self._process.close()
        self._process = None

    def _translated(self, error: SourceError, path: str) -> SourceError:
        return SourceError(f"container {self.name}: {str(error).replace(path, self.path)}")

    # -- the interface --------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """One epoll descriptor: the log's and the process's change with each restart."""
        return [self._epoll.fileno()]

    def read(self) -> list[Claim]:
        """Claims from the log; after the end of the process up to the log's last line."""
        self._first = False
        self.strangers = []
        if self._file is None or self._process is None:
            return []
        ended = self._process.ended
        try:
            claims = self._file.read()
        except SourceError as error:
            raise self._translated(error, self._file.path) from error
        self.window, self.epoch_offset_s = self._file.window, self._file.epoch_offset_s
        self.strangers = self._file.strangers
        if ended and not self._file.more:
            self._leave()
        return claims

    @property
    def more(self) -> bool:
        """Whether there is more to read than the last ``read`` took."""
        return self._file is not None and self._file.more

    @property
    def replaying(self) -> bool:
        """Whether what ``read`` gives was written before we looked."""
        return self._first if self._file is None else self._file.replaying

    def settled(self) -> None:
        """Nobody waits for a line of theirs."""

    def tick(self) -> str | None:
        """Look for the container, follow rotations inside it; say once what is missing."""
        sentence = self._look()
        self.counters = Counters(**vars(self._retired))
        if self._file is not None:
            _add(self.counters, self._file.counters)
        told, self._told = self._told, sentence or ""
        return sentence if sentence != told else None

    def _look(self) -> str | None:
        if self._process is None:
            sentence = self._enter()
            if sentence is not None:
                return sentence
        if self._process is None or self._file is None or self._process.ended:
            return None  # read() finishes it
        if self._file.missing and self._process.path(self.path) != self._file.path:
            # A link on the way was made after we had looked.
            self._leave_file()
            self._open_file(None)
        try:
            self._file.tick()
        except SourceError as error:
            raise self._translated(error, self._file.path) from error
        if not self._file.missing:
            return None
        return (
            f"container {self.name}: there is no {self.path} inside; waiting for it. The proxy "
            f"writes it when its config has {self._scanner.needs_in_file % self.path}"
        )

    @property
    def waiting(self) -> str:
        """That there is no container, or no log inside."""
        return self._told

    def checkpoint(self) -> Any:
        """As FileSource's; while no container runs, the last one's."""
        return self._checkpoint if self._file is None else self._file.checkpoint()

    def close(self) -> None:
        """Release all descriptors."""
        if self._file is not None:
            self._leave()
        self._epoll.close()


def _add(total: Counters, part: Counters) -> None:
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
