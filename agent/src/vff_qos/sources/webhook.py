"""Xray's routing-rule webhook: the source that cannot be forged.

The engine posts one JSON event for each routed connection to our unix socket (preferred: the
kernel checks who may connect) or to a loopback port.  A port can be reached by every local
process, *and by every customer through the proxy itself*, so that events there must carry a
token.  The engine does not repeat a POST: what comes while nobody listens is lost, and therefore
systemd should own the socket (``vff-qos-webhook.socket``) and keep it through our restarts.

The server lives in the follower's one thread: nothing here blocks, and everything is bounded.
"""

from __future__ import annotations

import errno
import grp
import hmac
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.claims.accesslog import Claim, Counters, Stranger
from ..core.claims.webhook_event import Nothing, read_event
from ..core.http import BadRequest, Parser, Request, answer
from ..errors import SourceError

_MAX_CONNECTIONS = 128
_BACKLOG = 1_024
_EVENTS_PER_READ = 64
#: A request must be whole within the time after which the engine gives it up.
_REQUEST_S = 5.0
#: A silent connection may be closed for a new one after this; before, its request may be on
#: the way.
_SETTLED_S = 1.0
#: After this without any event an operator should look at the engine's rules.
_QUIET_S = 60.0
_FIRST_INHERITED_FD = 3


@dataclass
class WebhookCounters(Counters):
    """``lines`` are requests, ``harmless`` those without a user, ``unparsed`` the malformed."""

    no_flow: int = 0
    stale: int = 0
    bad_email: int = 0
    refused: int = 0


class _Connection:
    """One client."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.parser = Parser()
        #: When the last bytes came, and when the request that is not whole yet began.
        self.heard = self.began = now


class WebhookSource:
    """Claims from the webhook at ``listen`` (``unix:/path`` or ``127.0.0.1:port``)."""

    def __init__(
        self,
        listen: str,
        group: str = "",
        mode: int = 0o660,
        token: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``group`` and ``mode`` are given to a unix socket; an inherited one keeps its own.

        Raises SourceError if it cannot listen there.
        """
        self._counts = WebhookCounters()
        self.counters: Counters = self._counts
        #: Nothing of the past is kept here; the first read ends the follower's replay.
        self.replaying = True
        self.more = False
        self.window = 0.0, 0.0
        #: An event is told when it happens, and no text of strangers can leave its place.
        self.epoch_offset_s: float | None = None
        self.strangers: list[Stranger] = []
        self._listen, self._clock = listen, clock
        self._authorization = f"Bearer {token}".encode() if token else b""
        self._unlink = ""
        self._listener = _inherited(listen) or self._open(group, mode)
        self._listener.setblocking(False)
        self._paused = False
        self._connections: dict[int, _Connection] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._quiet_until: float | None = time.monotonic() + _QUIET_S
        self._problem = ""

    # -- opening --------------------------------------------------------------------------------

    def _open(self, group: str, mode: int) -> socket.socket:
        try:
            if not self._listen.startswith("unix:"):
                return _listen_tcp(self._listen)
            path = self._listen[5:]
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            self._unlink = path
            if group:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            os.chmod(path, mode)
            listener.listen(_BACKLOG)
        except KeyError as error:
            raise SourceError(f"{self._listen}: there is no group {group}") from error
        except OSError as error:
            hint = ""
            if self._unlink and error.errno == errno.EPERM:
                hint = f"; the agent's user must be a member of {group}"
            raise SourceError(
                f"{self._listen}: cannot listen: {os.strerror(error.errno or 0)}{hint}"
            ) from error
        return listener

    # -- the interface --------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """One epoll descriptor for the listener and all connections."""
        return [self._epoll.fileno()]

    def read(self) -> list[Claim]:
        """Claims of what has arrived; answers at once."""
        if self.replaying:
            self.replaying = False
            return []
        claims: list[Claim] = []
        knock = False
        for descriptor, _mask in self._epoll.poll(0, _EVENTS_PER_READ):
            if descriptor == self._listener.fileno():
                knock = True
            else:
                self._serve(self._connections[descriptor], claims)
        if knock:
            self._accept(claims)
        self._resume()
        return claims

    def tick(self) -> str | None:
        """Close what hangs; say what an operator should know."""
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if not connection.parser.idle and now - connection.began > _REQUEST_S:
                self._refuse("a request that was not whole within 5 s")
                self._close(connection)
        self._resume()
        if self._problem:
            sentence = f"the webhook refused a request: {self._problem}"
            self._problem = ""
            return sentence
        if self._quiet_until is not None and now >= self._quiet_until:
            self._quiet_until = None
            return (
                f"no event has come to {self._listen} since the start; if there are clients, look "
                'whether the last rule of the engine\'s "routing" has the "webhook"'
            )
        return None

    def checkpoint(self) -> None:
        """There is no place to go on from."""

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
        for _ in range(_EVENTS_PER_READ):
            if len(self._connections) >= _MAX_CONNECTIONS and not self._make_room():
                # The rest waits in the kernel's queue.
                self._epoll.unregister(self._listener.fileno())
                self._paused = True
                return
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
            if sock.family != socket.AF_UNIX and not _is_loopback(peer[0]):
                self._refuse(f"a connection from {peer[0]}, which is not this host")
                sock.close()
                continue
            sock.setblocking(False)
            connection = _Connection(sock, time.monotonic())
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            # The request is often there already.
            self._serve(connection, claims)

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest; False if all are at work."""
        settled = time.monotonic() - _SETTLED_S
        for connection in self._connections.values():
            if connection.parser.idle and connection.heard < settled:
                self._close(connection)
                return True
        return False

    def _resume(self) -> None:
        if self._paused and (len(self._connections) < _MAX_CONNECTIONS or self._make_room()):
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            self._paused = False

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        connection.sock.close()

    def _serve(self, connection: _Connection, claims: list[Claim]) -> None:
        """Take what has come on one connection."""
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
            connection.began = connection.heard
        # Least recently heard first: see _make_room.
        self._connections[connection.sock.fileno()] = self._connections.pop(
            connection.sock.fileno()
        )
        try:
            requests = connection.parser.feed(data)
        except BadRequest as error:
            self._counts.lines += 1
            self._counts.unparsed += 1
            self._refuse(error.problem)
            self._answer(connection, error.status, True)
            return
        for request in requests:
            connection.began = connection.heard
            status = self._take(request, claims)
            if not self._answer(connection, status, not request.keep_alive):
                return

    def _answer(self, connection: _Connection, status: int, close: bool) -> bool:
        """Send an answer; False if the connection is closed now."""
        response = answer(status, close)
        try:
            whole = connection.sock.send(response) == len(response)
        except OSError:
            whole = False  # gone, or it does not read its answers
        if close or not whole:
            self._close(connection)
            return False
        return True

    # -- events ---------------------------------------------------------------------------------

    def _take(self, request: Request, claims: list[Claim]) -> int:
        """Read one event; returns the status of the answer."""
        counters = self._counts
        counters.lines += 1
        if self._authorization and not hmac.compare_digest(
            request.authorization, self._authorization
        ):
            self._refuse('no or a wrong token (in its "headers": "Authorization": "Bearer ...")')
            return 403
        self._quiet_until = None
        try:
            event = read_event(request.body, self._clock())
        except ValueError as error:
            counters.unparsed += 1
            self._refuse(str(error))
            return 400
        if isinstance(event, Claim):
            counters.claims += 1
            claims.append(event)
        elif event is Nothing.NO_USER:
            counters.harmless += 1
        elif event is Nothing.NO_FLOW:
            counters.no_flow += 1
        elif event is Nothing.STALE:
            counters.stale += 1
        else:
            counters.bad_email += 1
            self._problem = event.value
        return 200

    def _refuse(self, problem: str) -> None:
        self._counts.refused += 1
        self._problem = problem


def _listen_tcp(listen: str) -> socket.socket:
    host, _colon, port = listen.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(_BACKLOG)
    return listener


def _remove_stale(path: str) -> None:
    """Take away the socket of a run that was killed.  Raises SourceError if it is in use."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SourceError(f"{path}: is not a socket; remove it or name another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise SourceError(f"{path}: another process listens there")


def _inherited(listen: str) -> socket.socket | None:
    """The listening socket that systemd has opened for us (sd_listen_fds(3)), if it has."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=_FIRST_INHERITED_FD)
    listener.set_inheritable(False)
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        have = f"unix:{name}"
    else:
        have = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    if have != listen:
        raise SourceError(f"systemd listens at {have}, the settings say {listen}")
    return listener


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
