"""What users may use, as the policy and orders say: for headers, and for who is cut off.

Looked at once a second in one thread; all others read what it has found.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..commands.node import Node
from ..config import Paths, identities_stamp, policy_stamp
from ..core.names import PLAIN
from ..core.policy.model import Limits, Policy
from ..core.policy.overrides import Overrides
from ..core.settings import Settings, user_of
from ..errors import QosError
from ..name_hashing import mode_of


class Standing:
    """Limits by the names that logins have."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._node: Node | None = None
        self._stamp: list[list[object]] = []
        self._version = -1
        self._overrides: Overrides | None = None
        self._settings: Settings | None = None
        self._people: Mapping[str, str] = {}
        self._cuts = False
        #: Why nothing is known; empty while it is.
        self.trouble = "not looked at yet"

    def limits(self, login: str) -> Limits | None:
        """Of who logs in by this name; None where nothing is known."""
        overrides, settings = self._overrides, self._settings
        if overrides is None or settings is None:
            return None
        source = next((one for one in settings.sources if one.type == "flows"), None)
        user = login if source is None else user_of(settings, source, login)
        return overrides.limits(self._people.get(user, user), time.time())

    def is_cut(self, login: str) -> bool:
        """Whether their connections are to end."""
        limits = self.limits(login)
        return limits is not None and limits.cut

    @property
    def cuts_anybody(self) -> bool:
        """Whether it is worth asking who is there."""
        overrides = self._overrides
        return overrides is not None and (overrides.cut or self._cuts)

    def tend(self) -> None:
        """Once a second, always in the same thread."""
        try:
            self._look()
        except QosError as error:
            self.trouble = str(error)
            self.close()

    def close(self) -> None:
        """Close the state."""
        if self._node is not None:
            self._node.close()
            self._node = None

    def _look(self) -> None:
        stamp = [*policy_stamp(self._paths), identities_stamp(self._paths)]
        if self._node is None or stamp != self._stamp:
            self.close()
            self._node = Node(self._paths, prints=False)
            self._version = -1
        state = self._node.state
        version = state.version()
        if self._version == version:
            return
        # Hashes are the agent's secret: there orders are its alone, and the policy knows emails.
        is_plain = mode_of(state) == PLAIN
        policy: Policy = self._node.policy_in_force if is_plain else self._node.written_policy
        self._cuts = policy.cuts
        self._overrides = Overrides(state.overrides() if is_plain else (), policy)
        self._settings = self._node.settings
        self._people = self._node.identities_in_force(self._settings).people
        self._stamp, self._version, self.trouble = stamp, version, ""
