"""TCP connections through the clients' tunnels, and the target at their ends.

All sockets are of this process, opened in the lab's namespaces.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Sequence

from . import counters, network
from .internet import Internet

ECHO, SEND = b"e", b"s"
_BLOCK = bytes(65_536)


class Target:
    """Does to each connection what its first byte says: sends it back all it gets, or sends it as
    much as it takes."""

    def __init__(self, internet: Internet, ports: Sequence[int]) -> None:
        self._listeners = []
        with counters.inside(internet.namespace("inet")):
            for port in ports:
                listener = socket.create_server((network.TARGET_IPV4, port), backlog=1_000)
                self._listeners.append(listener)
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept(2)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                sends = peer.recv(1) == SEND
                while data := _BLOCK if sends else peer.recv(4_096):
                    peer.sendall(data)
            except OSError:
                return


def connect(
    internet: Internet, port: int, how: bytes, uplink: str = "", address: str = ""
) -> socket.socket:
    """A connection to a local end of a tunnel, or from a device's link to the node itself.

    ``address``: where else the node is, within a tunnel.
    """
    with counters.inside(internet.namespace("clients")):
        sock = socket.socket()
    sock.settimeout(30)
    if uplink:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink.encode())
    sock.connect((address or (network.NODE_IPV4 if uplink else "127.0.0.1"), port))
    sock.sendall(how)
    return sock


def echoes(sock: socket.socket, within_s: float = 10.0) -> bool:
    """Whether a byte comes back."""
    sock.settimeout(within_s)
    try:
        sock.sendall(b".")
        return sock.recv(1) == b"."
    except OSError:
        return False


class Download:
    """What a connection receives, from now on."""

    def __init__(self, internet: Internet, port: int, uplink: str = "", address: str = "") -> None:
        self._sock = connect(internet, port, SEND, uplink, address)
        self._seen = [(time.monotonic(), 0)]
        #: When the other side ended it, by time.monotonic().
        self.ended_s: float | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        total = 0
        self._sock.settimeout(None)
        try:
            while data := self._sock.recv(65_536):
                total += len(data)
                self._seen.append((time.monotonic(), total))
        except OSError:
            pass  # a reset is one end, as is a close
        self.ended_s = time.monotonic()

    def received(self, start: float, end: float) -> int:
        """Bytes between two times of time.monotonic()."""
        before = [total for at, total in self._seen if at <= start]
        until = [total for at, total in self._seen if at <= end]
        return (until or [0])[-1] - (before or [0])[-1]

    def longest_gap_s(self, start: float, end: float) -> float:
        """For how long nothing came."""
        times = [start, *(at for at, _ in self._seen if start < at < end), end]
        return max(b - a for a, b in itertools.pairwise(times))

    def close(self) -> None:
        self._sock.close()
