"""The file of services, networks and people: read when it changes.

What is wrong is told and changes nothing, as with the policy.
"""

from __future__ import annotations

from ..config import Paths, identities_stamp, load_identities
from ..core import events
from ..core.identities import Identities
from ..core.names import Names
from ..core.settings import Settings
from ..errors import ConfigError
from ..journal import Journal
from ..kept import keep_identities, kept_identities
from ..state import State, StateError


class IdentityFile:
    """The identities of a follower."""

    def __init__(self, paths: Paths, settings: Settings, state: State, journal: Journal) -> None:
        self._paths, self._settings, self._state = paths, settings, state
        self._journal = journal
        # What was read last, and what the file looked like a second ago.
        self._read = self._seen = identities_stamp(paths)
        #: Why the file is not in force, with line; empty if it is.
        self.refused = ""
        #: The stamp of the file in force; empty if those are the last good ones.
        self.in_force: list[object] = []

    def first(self) -> Identities:
        """Those to start with; raises ConfigError if there are none, StateError."""
        try:
            return self._load()
        except ConfigError as error:
            found = kept_identities(self._state, self._settings)
            if found is None:
                raise
            self._refuse(error, "the last good ones stay in force")
            return found

    def look(self, told: bool) -> Identities | None:
        """With each report: others if somebody asks (``told``), or if the file has changed and then
        kept still."""
        stamp = identities_stamp(self._paths)
        still, self._seen = stamp == self._seen, stamp
        if stamp == self._read or not (told or still):
            return None
        try:
            return self._load()
        except ConfigError as error:
            self._refuse(error, "the old ones stay in force")
            return None

    def keep(self, names: Names) -> None:
        """Remember them for a start with a mistake in the file, ``names`` as they are kept."""
        try:
            keep_identities(self._state, self._paths, self._settings, names)
        except StateError as error:
            self._journal.tell(events.STATE, error=str(error), effect="identities are not kept")

    def _load(self) -> Identities:
        stamp = self._read = identities_stamp(self._paths)
        found = load_identities(self._paths, self._settings)
        self.in_force, self.refused = stamp, ""
        return found

    def _refuse(self, error: ConfigError, effect: str) -> None:
        self.refused = error.nameless() if self._settings.hash_emails else str(error)
        self._journal.tell(events.IDENTITIES_REFUSED, error=self.refused, effect=effect)
