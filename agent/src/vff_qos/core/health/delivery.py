"""Whether reports of usage reach whoever is to be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..units import format_duration
from .findings import DEGRADED, Finding

#: Reports that fail for so long are told, in seconds: a receiver may be restarted.
UNREPORTED_S = 600.0


class Delivery(NamedTuple):
    """How the last report went.

    ``failing_since``: in seconds since the epoch, None if it went well; ``why`` it did not, and how
    many parts are ``waiting``.
    """

    failing_since: float | None
    why: str
    waiting: int


def unreported(delivery: Delivery | None, now_s: float) -> Iterator[Finding]:
    """What is to be told of it."""
    if delivery is None or delivery.failing_since is None:
        return
    failing_s = now_s - delivery.failing_since
    if failing_s >= UNREPORTED_S:
        yield Finding(
            DEGRADED, "reports",
            f"usage has not been reported for {format_duration(failing_s)}: {delivery.why}",
            "'vff-qos report --now' tries at once; nothing is lost meanwhile (docs/REPORTS.md)",
            [f"{delivery.waiting} reports wait"],
        )  # fmt: skip
