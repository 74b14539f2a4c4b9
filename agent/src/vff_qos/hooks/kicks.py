"""Hysteria's trafficStats: who is there, what they have moved, and the end of who is cut off.

The kernel drops the packets of who is cut off at once, both ways, and whoever sends to them is told
(EPERM), which ends a busy connection; a kick ends the idle ones, too.  One kick ends one of a
user's connections (Hysteria app 2.13), hence it is said until nobody is there.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from ..core import events
from ..errors import QosError
from ..journal import Journal
from ..over_http import why
from .standing import Standing

_PATIENCE_S = 2.0
_MAX_ANSWER = 8 << 20
#: Nobody is told of the same trouble more often.
_PAUSE_S = 10.0


class NotAnswered(QosError):
    """trafficStats did not answer as it must."""


class TrafficStats:
    """The engine's own API."""

    def __init__(self, url: str, secret: str, journal: Journal) -> None:
        self._url, self._secret, self._journal = urlsplit(url), secret, journal
        #: Kicks so far; why the last question failed, empty if it did not.
        self.kicked = 0
        self.trouble = ""
        self._not_before = 0.0

    def traffic(self) -> dict[str, dict[str, int]]:
        """{user: {"tx": bytes, "rx": bytes}} since the engine's start.  Raises NotAnswered."""
        return dict(self._ask("GET", "/traffic"))

    def tend(self, standing: Standing) -> None:
        """Once a second: end the connections of who is cut off."""
        if not standing.cuts_anybody or time.monotonic() < self._not_before:
            return
        try:
            cut = [user for user in self._ask("GET", "/online") if standing.is_cut(user)]
            if cut:
                self._ask("POST", "/kick", cut)
                self.kicked += len(cut)
                self._journal.tell(events.HOOK_KICKED, users=str(len(cut)))
            self.trouble = ""
        except NotAnswered as error:
            self._not_before = time.monotonic() + _PAUSE_S
            self.trouble = str(error)
            effect = "who is cut off is not kicked, but their packets are dropped"
            self._journal.tell(events.HOOK_FAILED, error=str(error), effect=effect)

    def _ask(self, method: str, path: str, data: object = None) -> Any:
        connection = http.client.HTTPConnection(
            self._url.hostname or "", self._url.port, timeout=_PATIENCE_S
        )
        headers = {"Authorization": self._secret} if self._secret else {}
        try:
            body = None if data is None else json.dumps(data)
            connection.request(method, self._url.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise NotAnswered(f"{self._url.netloc}: {why(error)}") from error
        finally:
            connection.close()
        if answer.status == 401:
            raise NotAnswered(f"{self._url.netloc}: wants another secret (hysteria_stats_secret)")
        if answer.status != 200:
            raise NotAnswered(f"{self._url.netloc}: {path} answered {answer.status}")
        if method == "POST":
            return None
        try:
            found = json.loads(text)
        except ValueError as error:
            raise NotAnswered(f"{self._url.netloc}: {path} is not JSON") from error
        if not isinstance(found, dict):
            raise NotAnswered(f"{self._url.netloc}: {path} is no object")
        return found
