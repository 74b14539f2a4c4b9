"""Which of a user's addresses are a device too many.

A device is an address (an IPv6 network of 64 bits) with live flows.  One that has been silent for
a while does not count: a phone that has changed its network leaves flows behind, and nothing comes
over them any more.  Whoever is there first stays: of those that count the latest are too many.  A
silent one keeps its place for the time of grace, then it comes back as the latest.

Pure: who looks at the kernel says for how long each address has been silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

#: From so long without a packet on an address is silent; in seconds.
SILENT_S = 10

#: An address as `core.claims.trust.address_key` gives it.
Place = bytes


class Devices:
    """The addresses of one user, in the order in which they came."""

    __slots__ = ("_flows",)

    def __init__(self) -> None:
        self._flows: dict[Place, int] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._flows)

    def count(self, place: Place) -> int:
        """How many flows come from an address."""
        return self._flows.get(place, 0)

    def gain(self, place: Place) -> None:
        """A flow has come."""
        self._flows[place] = self._flows.get(place, 0) + 1

    def lose(self, place: Place) -> None:
        """A flow has gone."""
        left = self._flows.get(place, 0) - 1
        if left > 0:
            self._flows[place] = left
        else:
            self._flows.pop(place, None)

    def talking(self, silent_s: Mapping[Place, int], grace_s: int) -> list[Place]:
        """Those that count, the first that came first.  ``silent_s``: for how long nothing came
        over any flow of an address, in seconds; none of it: no flow is open any more.

        Those silent for the time of grace lose their place.
        """
        found = []
        for place in list(self._flows):
            silent = silent_s.get(place, grace_s)
            if silent >= grace_s:
                self._flows[place] = self._flows.pop(place)
            elif silent < SILENT_S:
                found.append(place)
        return found
