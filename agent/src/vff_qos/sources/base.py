"""What every source of identities offers the follower."""

from __future__ import annotations

from typing import Any, Protocol

from ..core.claims.accesslog import Claim, Counters, Stranger


class Source(Protocol):
    """A stream of claims.  A new kind of source is a new file with this shape."""

    counters: Counters
    #: What the last ``read`` gave was written between these (CLOCK_MONOTONIC, seconds; -inf: it
    #: is not known since when).
    window: tuple[float, float]
    #: Time since the epoch less CLOCK_MONOTONIC, for ``stamp.written``; None if the clock was set
    #: within the window, or claims have no stamps.
    epoch_offset_s: float | None
    #: Who had a stranger's text written, among what the last ``read`` saw.
    strangers: list[Stranger]

    @property
    def waiting(self) -> str:
        """What is missing, so that nothing can come, and what to do; empty while nothing is."""

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when there may be something to read."""

    def read(self) -> list[Claim]:
        """Claims that are there now, a bounded portion; empty when there are none."""

    def settled(self) -> None:
        """What the last ``read`` gave is dealt with: whoever waits for that may know."""

    @property
    def more(self) -> bool:
        """Whether there is more to read than the last ``read`` took."""

    @property
    def replaying(self) -> bool:
        """Whether what ``read`` gives was written before we looked (after a restart)."""

    def tick(self) -> str | None:
        """About once a second: follow rotations.  Returns a sentence when a person should know."""

    def checkpoint(self) -> Any:
        """Where to go on after a restart, as JSON; valid for what ``read`` has given."""

    def close(self) -> None:
        """Release descriptors."""
