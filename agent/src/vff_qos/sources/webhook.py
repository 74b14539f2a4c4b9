"""Xray's routing-rule webhook: the source that cannot be forged.

The engine posts one JSON event for each routed connection, and does not repeat it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.claims.accesslog import Claim
from ..core.claims.webhook_event import Event, Nothing, read_event
from ..core.http import Request
from .posts import REQUEST_S, PostCounters, PostSource, Refusal


@dataclass
class WebhookCounters(PostCounters):
    """``harmless`` are events without a user."""

    no_flow: int = 0
    stale: int = 0
    bad_email: int = 0


class WebhookSource(PostSource):
    """Claims from the webhook at ``listen`` (``unix:/path``, ``@name`` or ``127.0.0.1:port``)."""

    name = "webhook"

    def __init__(
        self,
        listen: str,
        group: str = "",
        mode: int = 0o660,
        token: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """As `PostSource`; ``clock`` is the one of the events' stamps."""
        self._events = WebhookCounters()
        super().__init__(self._events, listen, group, mode, token)
        self._clock = clock

    def _take(self, request: Request, heard_s: float, claims: list[Claim]) -> tuple[int, str]:
        counters, now_s = self._events, self._clock()
        try:
            event = read_event(request.body, now_s)
        except ValueError as error:
            counters.unparsed += 1
            self._refuse(Refusal.EVENT, str(error))
            return 400, ""
        counters.last_event_s = now_s
        if isinstance(event, Event):
            counters.claims += 1
            claims.append(event.claim)
            self._note_time(heard_s, event.age_s)
        elif event is Nothing.NO_USER:
            counters.harmless += 1
        elif event is Nothing.NO_FLOW:
            counters.no_flow += 1
        elif event is Nothing.STALE:
            counters.stale += 1
        else:
            counters.bad_email += 1
            self._problem = event.value
        return 200, ""

    def _note_time(self, heard_s: float, age_s: float | None) -> None:
        """Note between when and when an event was written.

        ``ts`` is the start of the second in which the event was written, by the clock that is ours,
        too.  Where it does not help (none, or the clock was set back since), an event is as old as
        the engine's patience at most.
        """
        if age_s is None or age_s < 0:
            self._spans.append((heard_s - REQUEST_S, heard_s))
        else:
            self._spans.append((heard_s - age_s, min(heard_s, heard_s - age_s + 1)))

    def _silence(self) -> str:
        if not self._counts.connections:
            return (
                f"nobody has connected to {self._listen} since the start; if there are "
                "clients, nobody new is limited: look whether the engine's user may write "
                'to it, and whether the last rule of its "routing" has the "webhook"'
            )
        return (
            f"no event has come to {self._listen} since the start; if there are clients, look "
            'whether the last rule of the engine\'s "routing" has the "webhook"'
        )
