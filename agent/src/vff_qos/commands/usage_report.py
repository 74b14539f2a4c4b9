"""``vff-qos report``: tells usage to a receiver by HTTP, at least once.  A process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import random
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from .. import __version__
from ..config import read_secret
from ..core import events
from ..core.health.delivery import Delivery
from ..core.settings import Settings
from ..core.units import format_duration
from ..core.usage_reports import HttpRequest, Total, pause_s, requests, shown_url
from ..errors import QosError, Refused
from ..name_hashing import people_of
from ..over_http import trust, why
from ..report_queue import ReportQueue
from ..runfile import write_delivery
from .node import Node

#: A receiver has so long for a connection and for each piece of its answer, and a run in all: the
#: next one goes on.
_PATIENCE_S, _RUN_S = 20.0, 240.0
_MAX_SECRET = 4_096


class NotAccepted(QosError):
    """The receiver did not take a report; ``asked_s``: when it wants to be asked again."""

    def __init__(self, sentence: str, asked_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.asked_s = asked_s


def report(node: Node, now: bool = False) -> str:
    """Queue what was moved since the last time, and send what waits; returns what was done.

    ``now``: also if the pause after a failure is not over.  Raises Refused, ConfigError,
    StateError, or NotAccepted; what was not accepted is kept.
    """
    settings = node.settings_in_force
    if not settings.report_url:
        raise Refused("report_url is not set: there is nobody to report to (docs/REPORTS.md)")
    receiver = Receiver(settings, _secret(node, settings))
    with _alone(node.paths.state_dir):
        queue = ReportQueue(node.paths.state_dir)
        try:
            return _report(node, receiver, queue, now)
        finally:
            receiver.close()
            queue.close()


def _report(node: Node, receiver: Receiver, queue: ReportQueue, now: bool) -> str:
    accounts = node.state.accounts
    until_s = accounts.read_until()
    if until_s is None:
        until_s = time.time()
    totals = (
        Total(account.key, account.since, account.upload, account.download)
        for account in accounts.accounts()
        if account.key >= " "
    )
    people = people_of(node.state)
    has_room = queue.cut(totals, until_s, os.uname().nodename, people)
    not_before, failures = queue.get("not_before") or 0.0, queue.get("failures") or 0
    left_s = not_before - time.time()
    # A clock that was set back must not stop reports for long.
    if queue.waiting and not now and 0 < left_s <= not_before - (queue.get("failed") or 0.0):
        raise NotAccepted(
            f"{queue.get('why')}; {queue.waiting} reports wait, the next try is due in "
            f"{format_duration(max(1, left_s))} (--now tries at once)"
        )
    if not queue.waiting:
        _note(node, queue, 0, "", 0.0)
        return "nothing to report"
    # Until it has gone well: whoever kills us in the middle must not make us hurry.
    _note(node, queue, failures + 1, "it did not end", 0.0)
    try:
        sent, users = _send(receiver, queue)
    except NotAccepted as error:
        _note(node, queue, failures + 1, str(error), error.asked_s)
        raise NotAccepted(f"{error}; {queue.waiting} reports wait") from error
    _note(node, queue, 0, "", 0.0)
    more = "" if has_room else "; more was moved meanwhile, which comes with the next"
    waits = f"; {queue.waiting} wait for the next run" if queue.waiting else ""
    return f"reported {users} records of users in {sent} reports{waits}{more}"


def _note(node: Node, queue: ReportQueue, failures: int, why: str, asked_s: float) -> None:
    """Remember how it went, for the next run and for ``status``."""
    at_s = time.time()
    since = queue.get("failing_since") if failures else None
    pause = pause_s(failures, random.random(), asked_s) if failures else 0.0
    queue.set("failures", failures)
    queue.set("failed", at_s)
    queue.set("failing_since", (since or at_s) if failures else None)
    queue.set("not_before", at_s + pause)
    queue.set("why", why)
    delivery = Delivery(queue.get("failing_since"), why, queue.waiting)
    try:
        write_delivery(node.paths.run_dir, delivery)
    except OSError as error:
        sentence = f"{node.paths.run_dir}: {os.strerror(error.errno or 0)}"
        node.warn(events.STATE, sentence, "'status' does not know how it went")


def _send(receiver: Receiver, queue: ReportQueue) -> tuple[int, int]:
    """Send what waits, in order, as long as a run may last; returns (parts, records)."""
    deadline = time.monotonic() + _RUN_S
    parts = records = 0
    for part in queue.parts():
        wanted = receiver.requests(part.key, part.records)
        for number in range(part.sent, len(wanted)):
            if time.monotonic() > deadline:
                return parts, records
            receiver.send(wanted[number])
            queue.accepted(part, number + 1, len(wanted))
        parts, records = parts + 1, records + len(part.records)
    return parts, records


class Receiver:
    """Whoever is told.  ``send`` raises NotAccepted."""

    def __init__(self, settings: Settings, secret: str) -> None:
        """Raises ConfigError."""
        self._url, self._form, self._secret = settings.report_url, settings.report_format, secret
        self._shown = shown_url(settings.report_url)
        parts = urlsplit(settings.report_url)
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = trust(settings.report_ca_file)
            self._connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=_PATIENCE_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(
                parts.hostname or "", parts.port, timeout=_PATIENCE_S
            )

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def requests(self, key: str, records: list[dict[str, object]]) -> list[HttpRequest]:
        """What is to be sent of a part."""
        return requests(self._url, self._form, key, records)

    def send(self, request: HttpRequest) -> None:
        """Send one request, and have it accepted."""
        headers = {"User-Agent": f"vff-qos/{__version__}", "Idempotency-Key": request.key}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        is_old = self._connection.sock is not None
        try:
            try:
                answer = self._ask(request, headers)
            except ConnectionError:
                # A receiver may have ended a connection that was not used for a moment.
                if not is_old:
                    raise
                self._connection.close()
                answer = self._ask(request, headers)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NotAccepted(f"{self._shown}: {_words(error)}") from error
        if not request.is_success(answer.status):
            self._connection.close()
            wanted = " instead of 204" if answer.status < 300 else ""
            raise NotAccepted(
                f"{self._shown}: answered {answer.status} {answer.reason}{wanted}",
                _retry_after_s(answer.headers.get("Retry-After", "")),
            )

    def _ask(self, request: HttpRequest, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._connection.request(request.method, request.target, request.body, headers)
        answer = self._connection.getresponse()
        # Nobody needs it, but the connection can only be used again after it.
        answer.read(65_536)
        if not answer.isclosed():
            self._connection.close()
        return answer


def _retry_after_s(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"did not answer within {_PATIENCE_S:.0f} s"
    return why(error)


def _secret(node: Node, settings: Settings) -> str:
    path = settings.report_secret_file
    return read_secret(path, node.paths, 1, _MAX_SECRET) if path else ""


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Two runs at once would send everything twice."""
    try:
        gate = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{directory}: {os.strerror(error.errno or 0)}") from error
    try:
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused("another report is on its way") from error
        yield
    finally:
        os.close(gate)
