"""The policy's files: read when they change, within milliseconds and without polling them.

What is wrong is told and changes nothing: the policy that was read before stays in force, at a
start the last good one.
"""

from __future__ import annotations

import errno
import os

from inotify_simple import INotify
from inotify_simple import flags as inotify_flags

from ..config import Paths, PolicyFile, parse_files, policy_stamp, read_policy
from ..core import events
from ..core.names import Names
from ..core.policy.model import Policy
from ..errors import ConfigError
from ..journal import Journal
from ..kept import keep_policy, kept_policy
from ..state import State, StateError

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
                # It may come later, or never; the caller looks from time to time, too.
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


class PolicyFiles:
    """The policy of a follower."""

    def __init__(self, paths: Paths, state: State, journal: Journal, names: Names) -> None:
        self._paths, self._state, self._journal, self._names = paths, state, journal, names
        self._watch = PolicyWatch(paths)
        self._unkept: list[PolicyFile] | None = None
        # What was read last, and what the files looked like at the last look.
        self._read = self._seen = policy_stamp(paths)
        #: The stamp of the files in force; empty if that is the last good policy.
        self.in_force: list[list[object]] = []
        #: Why the files are not in force, with file and line; empty if they are.
        self.refused = ""

    def first(self) -> Policy:
        """The policy to start with; raises ConfigError if there is none, StateError."""
        try:
            return self._load()
        except ConfigError as error:
            policy = kept_policy(self._state)
            if policy is None:
                raise
            self._refuse(error, "the last good policy stays in force")
            return policy.named(self._names)

    def descriptors(self) -> list[int]:
        """What becomes readable when a file changes."""
        return self._watch.descriptors()

    def heard(self) -> Policy | None:
        """The new policy if a descriptor tells of one; None if nothing is to be done."""
        if self._watch.heard() and policy_stamp(self._paths) != self._read:
            return self._reload()
        return None

    def look(self, told: bool) -> Policy | None:
        """With each report: the policy if somebody asks (``told``), or if its files have changed
        and then kept still.

        The watch tells at once and only of files that are complete; where it cannot see (network
        file systems, links to elsewhere), a change is noticed here.
        """
        stamp = policy_stamp(self._paths)
        still, self._seen = stamp == self._seen, stamp
        return self._reload() if told or (stamp != self._read and still) else None

    def keep(self) -> None:
        """Remember the policy for a start with a mistake in it, once it is in force."""
        if self._unkept is None:
            return
        try:
            keep_policy(self._state, self._unkept, self._names)
        except StateError as error:
            self._journal.tell(events.STATE, error=str(error), effect="the policy is not kept")
        else:
            self._unkept = None

    def _reload(self) -> Policy | None:
        try:
            return self._load()
        except ConfigError as error:
            self._refuse(error, "the old policy stays in force")
            return None

    def _refuse(self, error: ConfigError, effect: str) -> None:
        self.refused = str(error) if self._names.are_emails else error.nameless()
        self._journal.tell(events.POLICY_REFUSED, error=self.refused, effect=effect)

    def _load(self) -> Policy:
        stamp = self._read = policy_stamp(self._paths)
        files = read_policy(self._paths)
        policy = parse_files(files).named(self._names)
        self.in_force, self._unkept, self.refused = stamp, files, ""
        return policy
