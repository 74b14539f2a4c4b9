"""Tells when the policy's files change, within milliseconds and without polling them."""

from __future__ import annotations

import errno
import os

from inotify_simple import INotify
from inotify_simple import flags as inotify_flags

from ..config import Paths

# Not MODIFY: half a file is not a policy.
_EVENTS = (
    inotify_flags.CLOSE_WRITE | inotify_flags.MOVED_TO | inotify_flags.MOVED_FROM
    | inotify_flags.DELETE | inotify_flags.CREATE
)  # fmt: skip


class PolicyWatch:
    """Watches the directories of policy.yml and of its drop-ins."""

    def __init__(self, paths: Paths) -> None:
        self._policy_dir = os.path.abspath(paths.policy_dir)
        self._parents = {
            os.path.dirname(os.path.abspath(path)) for path in (paths.policy, self._policy_dir)
        }
        self._inotify = INotify(nonblocking=True)
        self._watch()

    def _watch(self) -> None:
        """Watch what is there; watching a directory again changes nothing."""
        for directory in (*self._parents, self._policy_dir):
            try:
                self._inotify.add_watch(directory, _EVENTS | inotify_flags.ONLYDIR)
            except OSError as error:
                # It may come later, or never; the caller looks once a second, too.
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOSPC):
                    raise

    def descriptors(self) -> list[int]:
        """The inotify descriptor."""
        return [self._inotify.fileno()]

    def heard(self) -> bool:
        """Whether something changed since the last call."""
        events = self._inotify.read(timeout=0)
        if any(event.mask & (inotify_flags.CREATE | inotify_flags.MOVED_TO) for event in events):
            self._watch()
        done = _EVENTS & ~inotify_flags.CREATE
        return any(event.mask & (done | inotify_flags.ISDIR) for event in events)
