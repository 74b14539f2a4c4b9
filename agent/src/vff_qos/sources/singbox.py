"""sing-box's stream of connections: the agent asks, and is told of each one that begins.

The engine sends all connections that there are, then each new one within some milliseconds.  Those
that it had no room to tell (it drops events that are read too slowly) come with its next look at
all connections, which the request asks for.  So a stream that was lost is mended by the next one,
and nothing is kept over a restart.

It lives in the follower's one thread: nothing blocks, everything is bounded.  While the engine is
away it is looked for, at first every second.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ..config import read_secret
from ..core.claims.accesslog import Claim, Counters, Stranger
from ..core.claims.event_stream import (
    PING,
    BadStream,
    Begun,
    Ended,
    Events,
    Unclaimed,
    read_event,
    request,
)
from ..core.claims.stamp import QUARTER_S, SLACK_S
from ..errors import ConfigError
from .clock import Clock

#: How often the engine looks at all connections: what it has dropped comes with the next look.
_INTERVAL_S = 5.0
#: The first message comes at once, or the engine hangs; so does the answer to a ping.
_ANSWER_S = 10.0
#: After this without a byte the engine is asked whether it is there.
_SILENT_S = 30.0
#: How long to wait before it is looked for again, at first and at most.
_RETRY_S, _MAX_RETRY_S = 1.0, 30.0
#: A stream that lasted so long was a good one.
_GOOD_S = 10.0
_READ_BYTES = 1 << 18
#: Connections that began so far apart are given apart, so that each stamp means one time.
_SPAN_S = QUARTER_S / 2
#: How long a secret is, in bytes.
SECRET_BYTES = (8, 256)
#: Answers that the engine does not take, at most: a window of what it has sent has few.
_MAX_OUT = 1 << 16

_RULE = '{"domain_regex": ["[^ -~]"], "action": "reject"}'
_WHY = {
    Ended.UNAUTHENTICATED: (
        "refuses the secret of secret_file; it must be that of the service 'api' in sing-box's "
        "configuration"
    ),
    Ended.UNIMPLEMENTED: "knows no SubscribeConnections; sing-box has it since 1.14",
    Ended.INTERNAL: (
        "cannot tell of a connection to a name that is no text, and so of none, until that one has "
        f"long ended; 'route': {{'rules': [{_RULE}, ...]}} in sing-box's configuration, before any "
        "'sniff' and once more after it, refuses such connections"
    ),
    Ended.OTHERWISE: "has ended the stream of connections",
}


@dataclass
class SingboxCounters(Counters):
    """``lines`` are connections, ``harmless`` those without a user, ``unparsed`` what is no event.

    ``streams`` have been begun; with the second the first was lost.
    """

    no_flow: int = 0
    bad_email: int = 0
    streams: int = 0


class SingboxSource:
    """Claims from the service ``api`` of sing-box at ``address`` (``127.0.0.1:9091``)."""

    def __init__(self, address: str, secret_file: str, clock: Clock | None = None) -> None:
        """An engine that is away is waited for; ``secret_file`` is read for each stream."""
        self._counts = SingboxCounters()
        self.counters: Counters = self._counts
        #: Unclaimed of the past is kept here; the first read ends the follower's replay.
        self.replaying = True
        self.window = 0.0, 0.0
        self.epoch_offset_s: float | None = None
        self.strangers: list[Stranger] = []
        self._address, self._secret_file = address, secret_file
        self._clock = clock or Clock()
        self._epoll = select.epoll()
        self._sock: socket.socket | None = None
        self._events = Events()
        self._out = b""
        # Until when it must say something; None: it need not.
        self._deadline: float | None = None
        self._heard = self._asked = self._retry_at = 0.0
        self._delay = _RETRY_S
        #: Unclaimed has come on this stream yet.
        self._is_new = True
        self._full = False
        self._portions: list[list[Begun]] = []
        self._waiting = self._told = ""
        self._connect()

    # -- the interface --------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """One epoll descriptor: the socket changes with each stream."""
        return [self._epoll.fileno()]

    @property
    def more(self) -> bool:
        """Whether there is more to read than the last ``read`` took."""
        return bool(self._portions) or self._full

    @property
    def has_answered(self) -> bool:
        """Whether the engine has begun to tell of connections."""
        return self._counts.streams > 0

    @property
    def waiting(self) -> str:
        """That there is no stream, and why."""
        return self._waiting

    def read(self) -> list[Claim]:
        """Claims of connections that began at about the same time."""
        self.replaying = False
        now = self._clock.look()
        self.window, self.epoch_offset_s = (now, now), None
        if not self._portions:
            self._full = False
            for _descriptor, mask in self._epoll.poll(0):
                if mask & select.EPOLLOUT:
                    self._send()
                if mask & ~select.EPOLLOUT:
                    self._portions = list(self._split(self._receive()))
        if not self._portions:
            return []
        portion = self._portions.pop(0)
        self.window, self.epoch_offset_s = self._when(portion, now)
        self._counts.claims += len(portion)
        return [told.claim for told in portion]

    def settled(self) -> None:
        """Nobody waits for what is done with its events."""

    def tick(self) -> str | None:
        """Look for the engine, ask whether it is there; say once what is missing."""
        now = time.monotonic()
        if self._sock is None:
            if now >= self._retry_at:
                self._connect()
        elif self._deadline is not None and now >= self._deadline:
            self._fail(f"has said nothing for {_ANSWER_S:.0f} s; it hangs, or is no sing-box")
        elif self._deadline is None and now - self._heard >= _SILENT_S:
            self._deadline = now + _ANSWER_S
            self._out += PING
            self._send()
        told, self._told = self._told, self._waiting
        return self._waiting if self._waiting and self._waiting != told else None

    def checkpoint(self) -> None:
        """There is no place to go on from: each stream begins with what there is."""

    def close(self) -> None:
        """Release descriptors."""
        self._hang_up()
        self._epoll.close()

    # -- when connections began -----------------------------------------------------------------

    def _split(self, told: list[Begun]) -> Iterable[list[Begun]]:
        """Connections in portions of those that began at about the same time."""
        told.sort(key=lambda one: one.created_ms)
        portion: list[Begun] = []
        for one in told:
            if portion and one.created_ms - portion[0].created_ms > _SPAN_S * 1e3:
                yield portion
                portion = []
            portion.append(one)
        if portion:
            yield portion

    def _when(self, portion: list[Begun], now: float) -> tuple[tuple[float, float], float | None]:
        """Between when they began, and what their stamps count with.

        A time that cannot be was taken before somebody set the clock.
        """
        since_s = portion[0].created_ms / 1e3 - self._clock.offset_s
        until_s = portion[-1].created_ms / 1e3 + 1e-3 - self._clock.offset_s
        offset_s = self._clock.offset_since(since_s)
        if offset_s is None or since_s < 0 or until_s > now + SLACK_S:
            return (-math.inf, now), None
        return (since_s - SLACK_S, min(until_s + SLACK_S, now)), offset_s

    # -- the connection -------------------------------------------------------------------------

    def _connect(self) -> None:
        host, _colon, port = self._address.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        self._is_new, self._events = True, Events()
        self._asked = self._heard = time.monotonic()
        try:
            secret = read_secret(self._secret_file, None, *SECRET_BYTES)
        except ConfigError as error:
            self._fail(f"cannot be asked: {error}")
            return
        try:
            self._sock = socket.socket(family, socket.SOCK_STREAM)
            self._sock.setblocking(False)
            code = self._sock.connect_ex((host.strip("[]"), int(port)))
            self._epoll.register(self._sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except OSError as error:  # without IPv6, or without a descriptor
            self._fail_with(error)
            return
        self._out = request(self._address, secret, _INTERVAL_S)
        self._deadline = self._heard + _ANSWER_S
        if code not in (0, errno.EINPROGRESS):
            self._fail_with(OSError(code, os.strerror(code)))

    def _send(self) -> None:
        if self._sock is None or not self._out:
            return
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail_with(error)
            return
        self._out = self._out[sent:]
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._out else 0)
        self._epoll.modify(self._sock.fileno(), wanted)

    def _receive(self) -> list[Begun]:
        """What has come: connections that have begun."""
        if self._sock is None:
            return []
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            self._fail_with(error)
            return []
        if not data:
            self._fail(_WHY[Ended.OTHERWISE])
            return []
        self._full = len(data) == _READ_BYTES
        self._heard = time.monotonic()
        events = self._events
        try:
            found = self._look_at(events.feed(data))
        except BadStream as error:
            self._counts.unparsed += 1
            self._fail(f"sends what is no stream of sing-box: {error}")
            return []
        self._counts.unparsed += events.overlong
        events.overlong = 0
        if events.begun:
            self._counts.streams += self._is_new
            self._is_new = False
            self._deadline, self._waiting = None, ""
        self._out += events.answer
        events.answer = b""
        if events.ended is not None:
            self._fail(_WHY[events.ended])
        elif len(self._out) > _MAX_OUT:
            self._fail("does not take what it is told")
        else:
            self._send()
        return found

    def _look_at(self, events: list[bytes]) -> list[Begun]:
        counts, found = self._counts, []
        for event in events:
            try:
                told = read_event(event)
            except BadStream:
                # Its length is right, so that the next one is not harmed.
                counts.lines += 1
                counts.unparsed += 1
                continue
            if told is Unclaimed.OLD:
                continue
            counts.lines += 1
            if isinstance(told, Begun):
                found.append(told)
            elif told is Unclaimed.NO_USER:
                counts.harmless += 1
            elif told is Unclaimed.NO_FLOW:
                counts.no_flow += 1
            else:
                counts.bad_email += 1
        return found

    # -- when there is none -----------------------------------------------------------------------

    def _fail_with(self, error: OSError) -> None:
        if error.errno != errno.ECONNREFUSED:
            self._fail(f"cannot be asked: {os.strerror(error.errno or 0)}")
            return
        host, _colon, port = self._address.rpartition(":")
        self._fail(
            "is not there; waiting for it. sing-box 1.14 and newer listens when its configuration "
            f'has "services": [{{"type": "api", "listen": "{host.strip("[]")}", "listen_port": '
            f'{port}, "secret": "..."}}]'
        )

    def _fail(self, why: str) -> None:
        """There is no stream; ask again later.

        Where a good one has ended, as at a restart of the engine, that is no news until the next
        one fails.
        """
        self._hang_up()
        now = time.monotonic()
        if not self._is_new and now - self._asked >= _GOOD_S:
            self._delay = _RETRY_S
            self._retry_at = now
            return
        if self._is_new or self._delay > _RETRY_S:
            self._waiting = f"{self._address}: sing-box's api {why}"
        self._retry_at = now + self._delay
        self._delay = min(self._delay * 2, _MAX_RETRY_S)

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._sock.close()  # which takes it out of the epoll, too
        self._sock, self._deadline, self._full, self._out = None, None, False, b""
