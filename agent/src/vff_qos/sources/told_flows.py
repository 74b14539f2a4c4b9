"""``POST /v1/flows``: whoever knows whose a flow is may say so, from the same host.

For engines without a source of their own: their hooks, scripts and our own ``vff-qos hooks``.  What
is told cannot be forged by a customer: the kernel says who may connect to the unix socket.  It may
come before the flow's first packet (``follower/awaited.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.claims.accesslog import Claim
from ..core.claims.flow_claim import PATH, read_flows
from ..core.http import Request
from .posts import REQUEST_S, PostCounters, PostSource, Refusal


class FlowsSource(PostSource):
    """Claims that programs of this host post to ``listen`` (``unix:/path``)."""

    name = "socket for flows"

    def __init__(
        self,
        listen: str,
        group: str = "",
        mode: int = 0o660,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """As `PostSource`."""
        super().__init__(PostCounters(), listen, group, mode)
        self._clock = clock

    def _take(self, request: Request, heard_s: float, claims: list[Claim]) -> tuple[int, str]:
        if request.target != PATH:
            self._refuse(Refusal.PATH, "posted to another path than /v1/flows")
            return 404, "there is /v1/flows and nothing else"
        try:
            found = read_flows(request.body)
        except ValueError as error:
            self._counts.unparsed += 1
            self._refuse(Refusal.EVENT, str(error))
            return 400, str(error)
        self._counts.last_event_s = self._clock()
        self._counts.claims += len(found)
        claims += found
        # It may have waited for us, as long as a request may.
        self._spans.append((heard_s - REQUEST_S, heard_s))
        return 204, ""

    def _silence(self) -> str:
        return (
            f"nobody has posted a flow to {self._listen} since the start; if there are clients, "
            "nobody new is limited: look whether the program that knows them runs, and may write "
            "to it"
        )
