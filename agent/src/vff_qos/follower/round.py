"""What one round of claims leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..core.claims.accesslog import Claim
from ..core.flows.record import END


@dataclass
class Counts:
    """What became of the claims."""

    marked: int = 0
    kept: int = 0
    no_flow: int = 0
    awaited: int = 0
    no_source: int = 0
    stale: int = 0
    restricted: int = 0
    conflicts: int = 0
    ignored_tainted: int = 0
    foreign_mark: int = 0
    new_owners: int = 0
    exhausted: int = 0
    restored: int = 0
    #: UDP flows that continue others: followed by the kernel, by address, and with several users
    #: at the address.
    followed: int = 0
    handed_on: int = 0
    ambiguous_udp: int = 0
    early_confirmed: int = 0
    early_corrected: int = 0


class Given(NamedTuple):
    """A flow that a round has given away, as it was and as it shall be."""

    client: bytes
    before: int
    after: int
    #: What to remember of it: the claim whose repetitions then mean the same flow.
    claim: Claim | None


class Round:
    """What one round of claims leads to: the last word on each flow counts."""

    def __init__(self, began_s: float) -> None:
        #: When it began, by a clock that never goes back.
        self.began_s = began_s
        self.given: dict[tuple[bytes, int], Given] = {}

    def give(self, client: bytes, before: int, after: int, claim: Claim | None) -> None:
        """The flow shall be as ``after`` says."""
        name = client, before & END
        earlier = self.given.get(name)
        if earlier is not None:
            before = earlier.before
        self.given[name] = Given(client, before, after, claim)
