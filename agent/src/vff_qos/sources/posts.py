"""What the sources that are told by POST share: the server, and how long anybody may take.

It listens at a unix socket (preferred: the kernel checks who may connect) or at a loopback port.
A port can be reached by every local process, *and by every customer through the proxy itself*, so
that requests there must carry a token.  Who posts does not repeat it: what comes while nobody
listens is lost, and therefore systemd should own the socket and keep it through our restarts.

The server lives in the follower's one thread: nothing here blocks, and everything is bounded.
Whoever can connect can also open many connections and say nothing, or a byte now and then.  An
engine speaks at once, so such a connection is the first to go when there is no room; it goes from
the peer (on a unix socket a user and a process) that has the most.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from ..core.claims.accesslog import Claim, Counters, Stranger
from ..core.http import BadRequest, Parser, Request, answer
from ..errors import SourceError
from .listener import group_number, is_abstract, is_loopback, may_write, open_listener

_MAX_CONNECTIONS = 256
_ACCEPTS_PER_READ = 64
#: A request must be whole within the time after which an engine gives it up.
REQUEST_S = 5.0
#: An engine writes a request at once; a stranger could wake us for each byte of one.
_MAX_PIECES = 64
#: A connection that was silent for this long may be closed to make room for another: before its
#: first request, and after one.  Sooner, a request may be on its way.
_STRANGER_S, _SETTLED_S = 0.02, 1.0
#: After this without any event an operator should look at the engine's configuration.
_QUIET_S = 60.0
#: struct ucred of unix(7): pid, uid, gid.
_UCRED = struct.Struct("=iII")


class Refusal(Enum):
    """Why a connection was closed or a request not taken: key for programs."""

    HTTP = "http"  # no POST as it must be
    TOKEN = "token"  # none or a wrong one
    EVENT = "event"  # the body is not what it must be
    PATH = "path"  # posted to another one
    SLOW = "slow"  # not whole in time, or byte by byte
    SILENT = "silent"  # closed for another one, before it had said anything whole
    STRANGER = "stranger"  # not from this host, or not in the group of an abstract socket
    DEAF = "deaf"  # does not read its answers


@dataclass
class PostCounters(Counters):
    """``lines`` are requests, ``unparsed`` the malformed.

    ``connections`` have been made since the start; ``refused`` is by `Refusal`; ``last_event_s``
    is when the last event came that could be read, in seconds since the epoch.
    """

    connections: int = 0
    last_event_s: float | None = None
    refused: dict[str, int] = field(default_factory=dict)


class _Peer(NamedTuple):
    """Who has connected.  By TCP everybody is one: also a customer, through the engine itself."""

    uid: int
    pid: int


class _Connection:
    """One client."""

    def __init__(self, sock: socket.socket, peer: _Peer, authorization: bytes, now: float) -> None:
        self.sock, self.peer = sock, peer
        self.parser = Parser(authorization)
        #: Whether a whole event with the right token has come here.
        self.proven = False
        #: When the last bytes came; when the request that is not whole yet began, in how many
        #: pieces it has come.
        self.born = self.heard = self.began = now
        self.pieces = 0
        #: Answers that wait until what was posted is dealt with, and whether they are the last.
        self.answers = b""
        self.is_ending = False


class PostSource(ABC):
    """Claims from what is posted to ``listen`` (``unix:/path`` or ``127.0.0.1:port``).

    A kind of source says how a request is read, and what to look at while none comes.
    """

    #: What people call it.
    name: str

    def __init__(
        self, counters: PostCounters, listen: str, group: str = "", mode: int = 0o660,
        token: str = "",
    ) -> None:  # fmt: skip
        """``group`` and ``mode`` are given to a unix socket; an inherited one keeps its own.

        Raises SourceError if it cannot listen there.
        """
        self._counts = counters
        self.counters: Counters = counters
        #: Nothing of the past is kept here; the first read ends the follower's replay.
        self.replaying = True
        self.more = False
        #: Between when and when (time.monotonic()) the claims of the last ``read`` were made.
        self.window = 0.0, 0.0
        self._spans: list[tuple[float, float]] = []
        #: Claims have no stamps, and no text of strangers can leave its place.
        self.epoch_offset_s: float | None = None
        self.strangers: list[Stranger] = []
        self._listen = listen
        self._authorization = f"Bearer {token}".encode() if token else b""
        # The kernel asks nobody at an abstract socket; so we do.
        self._group = group_number(listen, group) if is_abstract(listen) else None
        self._listener, self._unlink = open_listener(listen, group, mode)
        self._connections: dict[int, _Connection] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._quiet_until: float | None = time.monotonic() + _QUIET_S
        self._problem = ""

    # -- the interface --------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """One epoll descriptor for the listener and all connections."""
        return [self._epoll.fileno()]

    def read(self) -> list[Claim]:
        """Claims of what has arrived; answers at once."""
        now = time.monotonic()
        self.window = now, now
        if self.replaying:
            self.replaying = False
            return []
        self._spans.clear()
        claims: list[Claim] = []
        knock = False
        # Everybody who has said something is served before anybody is closed for another.
        for descriptor, _mask in self._epoll.poll(0, _MAX_CONNECTIONS + 1):
            if descriptor == self._listener.fileno():
                knock = True
            else:
                self._serve(self._connections[descriptor], claims)
        if knock:
            self._accept(claims)
        if self._spans:
            since, until = zip(*self._spans, strict=True)
            self.window = min(since), max(until)
        return claims

    def settled(self) -> None:
        """What the last ``read`` gave is dealt with: whoever posted it is answered now."""
        for connection in [c for c in self._connections.values() if c.answers]:
            self._answer(connection)

    def tick(self) -> str | None:
        """Close what hangs; say what an operator should know."""
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if not connection.parser.idle and now - connection.began > REQUEST_S:
                self._refuse(Refusal.SLOW, "a request that was not whole within 5 s")
                self._close(connection)
        if self._problem:
            sentence = f"the {self.name} refused a request: {self._problem}"
            self._problem = ""
            return sentence
        if self._quiet_until is not None and now >= self._quiet_until:
            self._quiet_until = None
            return self._silence()
        return None

    @property
    def waiting(self) -> str:
        """Nothing of ours: that nobody speaks may be because there is nobody."""
        return ""

    def checkpoint(self) -> Any:
        """There is no place to go on from."""
        return None

    def close(self) -> None:
        """Stop listening."""
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()
        self._listener.close()
        if self._unlink:
            os.unlink(self._unlink)

    # -- connections ----------------------------------------------------------------------------

    def _accept(self, claims: list[Claim]) -> None:
        for _ in range(_ACCEPTS_PER_READ):
            if len(self._connections) >= _MAX_CONNECTIONS and not self._make_room():
                return  # the rest waits in the kernel's queue, and we are woken again
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                raise SourceError(
                    f"{self._listen}: accept: {os.strerror(error.errno or 0)}"
                ) from error
            self._counts.connections += 1
            if sock.family != socket.AF_UNIX and not is_loopback(peer[0]):
                self._refuse(
                    Refusal.STRANGER, f"a connection from {peer[0]}, which is not this host"
                )
                sock.close()
                continue
            who, gid = _peer(sock)
            if self._group is not None and not may_write(sock, who.uid, gid, self._group):
                self._refuse(
                    Refusal.STRANGER,
                    f"a connection of user {who.uid} (process {who.pid}), who is neither root nor "
                    "in the group of the webhook",
                )
                sock.close()
                continue
            sock.setblocking(False)
            connection = _Connection(sock, who, self._authorization, time.monotonic())
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            # The request is often there already.
            self._serve(connection, claims)

    def _make_room(self) -> bool:
        """Close the connection that is worth least; False if all are at work."""
        now = time.monotonic()
        strangers = [
            c for c in self._connections.values() if not c.proven and c.born < now - _STRANGER_S
        ]
        if strangers:
            by_uid = Counter(c.peer.uid for c in strangers)
            by_peer = Counter(c.peer for c in strangers)
            # Of equals the first, which has been there for longest.
            worst = max(strangers, key=lambda c: (by_uid[c.peer.uid], by_peer[c.peer]))
            self._refuse(Refusal.SILENT)
            self._close(worst)
            return True
        for connection in self._connections.values():
            if connection.proven and connection.parser.idle and connection.heard < now - _SETTLED_S:
                self._close(connection)
                return True
        return False

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        connection.sock.close()

    def _serve(self, connection: _Connection, claims: list[Claim]) -> None:
        """Take what has come on one connection."""
        if connection.is_ending:
            return  # nothing more is heard of it
        fresh = connection.parser.idle
        try:
            data = connection.sock.recv(connection.parser.room)
        except BlockingIOError:
            return
        except OSError:
            # Reset by the peer: the same as an orderly end.
            data = b""
        if not data:
            self._close(connection)
            return
        connection.heard = time.monotonic()
        if fresh:
            connection.began, connection.pieces = connection.heard, 0
        connection.pieces += 1
        try:
            requests = connection.parser.feed(data)
        except BadRequest as error:
            self._counts.lines += 1
            self._counts.unparsed += error.status != 403
            why = Refusal.TOKEN if error.status == 403 else Refusal.HTTP
            self._refuse(why, error.problem)
            connection.answers += answer(error.status, True)
            connection.is_ending = True
            return
        for request in requests:
            connection.began, connection.pieces = connection.heard, 0
            self._counts.lines += 1
            status, sentence = self._take(request, connection.heard, claims)
            if status < 300:
                connection.proven = True
                self._quiet_until = None
            connection.answers += answer(status, not request.keep_alive, sentence)
            if not request.keep_alive:
                connection.is_ending = True
                return
        if connection.pieces > _MAX_PIECES:
            self._refuse(Refusal.SLOW, f"a request in more than {_MAX_PIECES} pieces")
            self._close(connection)
        elif connection.proven:
            # Least recently heard first: see _make_room.
            descriptor = connection.sock.fileno()
            self._connections[descriptor] = self._connections.pop(descriptor)

    def _answer(self, connection: _Connection) -> None:
        """Send the answers that wait."""
        response, connection.answers = connection.answers, b""
        try:
            whole = connection.sock.send(response) == len(response)
        except OSError:
            whole = False  # gone, or it does not read its answers
        if not whole:
            self._refuse(Refusal.DEAF)
        if connection.is_ending or not whole:
            self._close(connection)

    # -- what a kind of source says ---------------------------------------------------------------

    @abstractmethod
    def _take(self, request: Request, heard_s: float, claims: list[Claim]) -> tuple[int, str]:
        """Read one request whose last bytes came at ``heard_s`` (time.monotonic()).

        Adds to ``claims`` and `_spans`, counts, and returns the status of the answer with what is
        wrong, if anything is.
        """

    @abstractmethod
    def _silence(self) -> str:
        """What to look at when nothing has come since the start."""

    def _refuse(self, why: Refusal, problem: str = "") -> None:
        """Count a refusal; ``problem``, if any, is told at the next tick."""
        refused = self._counts.refused
        refused[why.value] = refused.get(why.value, 0) + 1
        self._problem = problem or self._problem


def _peer(sock: socket.socket) -> tuple[_Peer, int]:
    """Who has connected, and their group."""
    if sock.family != socket.AF_UNIX:
        return _Peer(-1, -1), -1
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return _Peer(uid, pid), gid
