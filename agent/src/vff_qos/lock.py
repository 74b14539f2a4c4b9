"""One critical section for all that give or take minors: follower, gc, suspend.

No user may be collected between the line that revives them and their mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from types import TracebackType

from .errors import QosError

_STAMP_BYTES = 16
_LOOK_S = 0.005


class Lock:
    """An advisory lock on ``<run_dir>/lock``; re-entered with ``with``.

    Each holder leaves its stamp, so that the next one knows whether it still is the same one:
    that is cheaper than to ask the database whether another process has written.
    """

    def __init__(self, run_dir: str) -> None:
        path = os.path.join(run_dir, "lock")
        try:
            os.makedirs(run_dir, mode=0o755, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise QosError(f"{path}: {os.strerror(error.errno or 0)}") from error
        self._stamp = os.urandom(_STAMP_BYTES)
        #: How long to wait before going on without it; None: for ever.  For the kill switch alone,
        #: which must not wait for a process that hangs.
        self.patience_s: float | None = None
        #: Whether somebody else held the lock; whoever has looked what they did resets it.
        self.changed_hands = True

    def __enter__(self) -> Lock:
        self._wait()
        if os.pread(self._fd, _STAMP_BYTES, 0) != self._stamp:
            self.changed_hands = True
            # Without room for it everybody looks anew each time, which is slower and as right.
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, self._stamp, 0)
        return self

    def _wait(self) -> None:
        if self.patience_s is None:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOOK_S)
            else:
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._fd)
