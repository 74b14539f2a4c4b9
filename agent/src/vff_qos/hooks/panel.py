"""The panel's own auth URL: a login is passed on, and the answer believed.

The panel away: whoever it let in before, with the same secret, is let in for a while.  Nobody
else ever is.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from http.client import HTTPMessage
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from .. import __version__
from ..core import events
from ..core.claims.webhook_event import read_email
from ..core.hooks.hook_settings import HookSettings
from ..journal import Journal
from ..over_http import trust, why
from .store import Store

#: So many are asked at once.  Whoever is not answered in time may hang for longer than we wait:
#: in a name's look-up, or in an answer that comes byte by byte.
_AT_ONCE = 16
#: After it did not answer, it is asked again so much later.
_PAUSE_S = 5.0
_MAX_ANSWER = 16_384
#: Whoever answers so says no; all else that is no yes tells nothing of the person.
_REFUSED = (400, 401, 403, 404, 410, 422)
#: What a panel may tell GoProxy along with its yes.
PASSED_ON = (
    "userconns", "ipconns", "userrate", "iprate", "userTotalRate", "ipTotalRate", "portTotalRate",
    "userqps", "ipqps", "upstream", "outgoing",
)  # fmt: skip


class Yes(NamedTuple):
    """Somebody is let in: who it is, and what the panel says along."""

    user: str
    headers: Mapping[str, str] = {}


class _Away(Exception):
    """No answer that tells anything; the message says why."""


class Panel:
    """Whoever is asked."""

    def __init__(self, settings: HookSettings, store: Store, journal: Journal) -> None:
        """Raises ConfigError."""
        self._store, self._journal = store, journal
        self._patience_s, self._cache_s = settings.auth_timeout_s, settings.auth_cache_s
        self._url = urlsplit(settings.auth_url)
        self._context: ssl.SSLContext | None = None
        if self._url.scheme == "https":
            self._context = trust(settings.auth_ca_file)
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(_AT_ONCE, "panel")
        self._retry_s = 0.0
        #: Why it is away; empty while it is not.
        self.away = ""
        #: How often it was asked, and how often who was let in before was let in without it.
        self.asked = self.without = 0

    def hysteria(self, request: dict[str, Any]) -> Yes | None:
        """As Hysteria would ask it: who it is, or None."""
        body = json.dumps(request).encode()
        digest = self._store.digest("hysteria", str(request.get("auth", "")))
        return self._judge(digest, "POST", self._target(), body)

    def goproxy(self, query: Mapping[str, str]) -> Yes | None:
        """As GoProxy would ask it: who it is, or None."""
        user = query.get("user", "")
        digest = self._store.digest("goproxy", user, query.get("pass", ""))
        return self._judge(digest, "GET", self._target(urlencode(query)), None, user)

    def _target(self, more: str = "") -> str:
        query = "&".join(part for part in (self._url.query, more) if part)
        return (self._url.path or "/") + (f"?{query}" if query else "")

    def _judge(
        self, digest: bytes, method: str, target: str, body: bytes | None, user: str = ""
    ) -> Yes | None:
        """``user``: who it is if the panel says yes; empty: it says who."""
        if self.away and time.monotonic() < self._retry_s:
            return self._before(digest)
        # One asks first when the pause is over; others are answered without meanwhile.
        self._retry_s = time.monotonic() + _PAUSE_S
        try:
            status, headers, text = self._ask(method, target, body)
            answer = _yes_of(status, headers, text, user)
        except _Away as error:
            if not self.away:
                self._journal.tell(events.HOOK_PANEL_AWAY, place=self._place, error=str(error))
            self.away = str(error)
            return self._before(digest)
        if self.away:
            self.away = ""
            self._journal.tell(events.HOOK_PANEL_BACK, place=self._place)
        if answer is None:
            self._store.refused(digest)
        else:
            self._store.let_in(digest, answer.user)
        return answer

    def _before(self, digest: bytes) -> Yes | None:
        user = self._store.was_let_in(digest, self._cache_s)
        self.without += user is not None
        return None if user is None else Yes(user)

    @property
    def _place(self) -> str:
        """Without what may be a secret in the path."""
        return f"{self._url.scheme}://{self._url.netloc}"

    # -- asking -----------------------------------------------------------------------------------

    def _ask(self, method: str, target: str, body: bytes | None) -> tuple[int, HTTPMessage, bytes]:
        """Status, headers and body, within the time.  Raises _Away."""
        self.asked += 1
        future = self._pool.submit(self._exchange, method, target, body)
        try:
            return future.result(self._patience_s)
        except TooLate:
            future.cancel()
            raise _Away(f"it did not answer within {self._patience_s} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Away(why(error)) from error

    def _exchange(
        self, method: str, target: str, body: bytes | None
    ) -> tuple[int, HTTPMessage, bytes]:
        headers = {"User-Agent": f"vff-qos/{__version__}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        old: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        connection = old or self._connect()
        try:
            try:
                connection.request(method, target, body, headers)
                answer = connection.getresponse()
            except ConnectionError:
                # It may have ended a connection that was not used for a moment.
                connection.close()
                if old is None:
                    raise
                connection = self._connect()
                connection.request(method, target, body, headers)
                answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER)
            if answer.isclosed():
                self._own.connection = connection
            return answer.status, answer.headers, text
        finally:
            if self._own.connection is None:
                connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._context is not None:
            return http.client.HTTPSConnection(
                host, port, timeout=self._patience_s, context=self._context
            )
        return http.client.HTTPConnection(host, port, timeout=self._patience_s)


def _yes_of(status: int, headers: HTTPMessage, text: bytes, user: str) -> Yes | None:
    """What the panel says.  Raises _Away where it says nothing of the person."""
    if user and status == 204:
        return Yes(user, {name: headers[name] for name in PASSED_ON if name in headers})
    if status in _REFUSED or (user and status < 300):
        return None
    if status != 200:
        raise _Away(f"it answered {status}")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _Away("its answer is not JSON") from error
    if not isinstance(data, dict) or not isinstance(data.get("ok"), bool):
        raise _Away('its answer has no "ok"')
    if not data["ok"]:
        return None
    name = data.get("id")
    if not isinstance(name, str) or read_email(name) is None:
        raise _Away('its answer has no "id" that can be a name')
    return Yes(name)
