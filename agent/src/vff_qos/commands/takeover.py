"""Connections that the role qos_per_user_xray has limited get classes of ours, at once.

Its marks are put down before its tree goes, since each is the minor of its user's class there.  As
soon as ours is whole, every live connection that bears one gets a class: that of the user whom the
policy names and whose email gives that mark, else one with the default limits under a name of its
own.  The next line of the log that names the connection gives it to its user.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from ..core.old_role import NAME, OldRole, mark_of
from ..core.owners import Minors
from ..kernel.packed.conntrack import Conntrack, Entry, decode_tuple

if TYPE_CHECKING:
    from .node import Node

_WAITING = "takeover"
_TCP = 6
#: Before the mark in the name of whoever is not known yet.
NAMELESS = "taken-over-"


class Memory(Protocol):
    """The part of State that keeps small values."""

    def get_value(self, key: str) -> Any: ...
    def set_value(self, key: str, value: Any) -> None: ...


class Takeover:
    """What `bootstrap` does beside its plan on a node that the old role has, or had just now."""

    def __init__(self, node: Node, by_order: bool = True) -> None:
        """Raises ConfigError if the old role's settings cannot be read.

        Not ``by_order``, as in a repair, only ends what was begun: who has gone back to the old
        role meanwhile must not have to fight with us.
        """
        #: What the old role was told; None if it is not here (any more).
        self.old: OldRole | None = node.old_role if by_order else None
        self._node = node

    def remember_marks(self, marks: Collection[int]) -> None:
        """Put down whose connections wait for a class: a moment later nothing else tells it."""
        if not marks or self.old is None:
            return
        _ = self._names  # while users have the old limits
        state = self._node.state
        known = state.get_value(_WAITING) or {"marks": []}
        waiting = sorted({*known["marks"], *marks})
        state.set_value(_WAITING, {"marks": waiting, "port": self.old.port})

    @cached_property
    def _names(self) -> dict[int, str]:
        """{mark: email} where one email alone has the mark: two would have shared a class."""
        found: dict[int, list[str]] = {}
        for email in self._node.policy_in_force.users:
            found.setdefault(mark_of(email.encode()), []).append(email)
        return {mark: names[0] for mark, names in found.items() if len(names) == 1}

    def move_marks(self, trees: int) -> list[str]:
        """Give the connections that wait a class and its mark; returns a line if there were any.

        Also those of a run that was cut short.  ``trees`` are in each direction now.  Raises
        KernelRefused and Exhausted.
        """
        node = self._node
        waiting = node.state.get_value(_WAITING)
        if waiting is None:
            return []
        settings = replace(node.settings_in_force, trees=trees)
        with node.lock, closing(Conntrack()) as conntrack:
            marks, port = set(waiting["marks"]), waiting["port"]
            entries = [e for e in conntrack.dump() if e.mark in marks and _is_to(port, e)]
            classes, owners = node.classes_now(settings)
            layout = settings.layout
            minors = Minors(layout.major, owners, trees=layout.trees)
            now = time.time()
            given, gone = {}, []
            for mark in sorted({entry.mark for entry in entries}):
                key = self._names.get(mark, f"{NAMELESS}{mark:04x}")
                owner, displaced = minors.take(key, now)
                given[mark] = owner
                gone += [displaced] if displaced else []
            node.state.save_owners(given.values(), gone)
            for error in classes.ensure(given.values()):
                raise error
            count = conntrack.set_entries(
                [(entry, layout.mark(given[entry.mark].minor)) for entry in entries]
            )
            node.state.set_value(_WAITING, None)
        if not count:
            return []
        return [f"give {count} connections of the role {NAME} to {len(given)} classes of ours"]


def _is_to(port: int, entry: Entry) -> bool:
    """That role marks TCP to its port alone."""
    flow = decode_tuple(entry.tuple_raw)
    return flow is not None and flow.proto == _TCP and flow.dport == port
