"""Tells the agent whose a flow is, over its socket for flows.

The agent being away refuses no customer: what could not be told is told again for a while, since
marks count for as long as a flow lives.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import deque

from ..core import events
from ..journal import Journal
from ..over_http import why

#: An engine's answer waits for it.
_PATIENCE_S = 0.3
#: What could not be told: so much, so long.
_MAX_WAITING, _WAIT_S = 1_024, 60.0
#: Of one request: the agent takes 64 KiB.
_AT_ONCE = 128

Claim = dict[str, str]


class Agent:
    """The agent, as far as claims go."""

    def __init__(self, listen: str, journal: Journal) -> None:
        """``listen``: ``unix:/path``."""
        self._path, self._journal = listen.removeprefix("unix:"), journal
        self._own = threading.local()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[float, Claim]] = deque(maxlen=_MAX_WAITING)
        #: What has been told, and what was lost because the agent was away for too long.
        self.told = self.lost = 0
        #: Why it is away; empty while it is not.
        self.away = ""

    def tell(self, user: str, source: str, protocol: str, local: str = "") -> None:
        """The flow from ``source`` is this user's; never raises, never waits for long."""
        claim = {"user": user, "source": source, "protocol": protocol}
        if local:
            claim["local"] = local
        if self.away and self._waiting:
            self._keep(claim)  # `tend` tries; nobody's login waits for it
        elif not self._post([claim]):
            self._keep(claim)

    def tend(self) -> None:
        """Once a second: tell what could not be told."""
        while self._waiting:
            now = time.monotonic()
            with self._lock:
                taken = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            kept = [entry for entry in taken if entry[0] > now]
            self.lost += len(taken) - len(kept)
            if kept and not self._post([claim for _until, claim in kept]):
                with self._lock:
                    room = _MAX_WAITING - len(self._waiting)
                    self._waiting.extendleft(reversed(kept[:room]))
                    self.lost += len(kept[room:])
                return

    def _keep(self, claim: Claim) -> None:
        with self._lock:
            self.lost += len(self._waiting) == _MAX_WAITING
            self._waiting.append((time.monotonic() + _WAIT_S, claim))

    def _post(self, claims: list[Claim]) -> bool:
        """Whether the agent has them."""
        body = json.dumps(claims)
        for is_last in (False, True):
            connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
            is_new = connection is None
            try:
                connection = connection or self._connect()
                connection.request("POST", "/v1/flows", body)
                answer = connection.getresponse()
                said = answer.read(1_000)
            except (OSError, http.client.HTTPException) as error:
                self._own.connection = None
                if connection is not None:
                    connection.close()
                # It may have ended a connection that was not used for a while.
                if is_new or is_last or isinstance(error, TimeoutError):
                    self._is_away(_words(error))
                    return False
                continue
            self._own.connection = connection
            if answer.status == 204:
                self.told += len(claims)
                self._is_back()
                return True
            # It would say so again.
            sentence = f"the agent refused a claim: {said.decode(errors='replace').strip()}"
            self._journal.tell(events.HOOK_FAILED, error=sentence, effect="its flow has no limit")
            return True
        return False

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=_PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_PATIENCE_S)
        try:
            connection.sock.connect(self._path)
        except OSError:
            connection.close()
            raise
        return connection

    def _is_away(self, why: str) -> None:
        if not self.away:
            self._journal.tell(events.HOOK_AGENT_AWAY, place=self._path, error=why)
        self.away = why

    def _is_back(self) -> None:
        if self.away:
            self.away = ""
            self._journal.tell(events.HOOK_AGENT_BACK, place=self._path)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not answer within {_PATIENCE_S:g} s"
    return why(error)
