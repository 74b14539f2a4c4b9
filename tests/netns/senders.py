"""Senders of packets into the WAN tree of a node that is a network namespace."""

from __future__ import annotations

import errno
import selectors
import socket
import time

from .harness import MAJOR, run

_SO_SNDBUFFORCE = 32


def send_through(device: str, minor: int, count: int = 10) -> None:
    """Packets of a user's class; SO_PRIORITY names it, so that no filter is needed."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MAJOR << 16 | minor)
        sock.bind((device, 0))
        for _ in range(count):
            sock.send(Flood.FRAME)


class Flood:
    """Users who always have something to send, each from a number of sockets, into the WAN tree.

    SO_PRIORITY names the class, so that no filter is needed; a full socket waits for its packets
    to leave the queue, as a real sender does.
    """

    FRAME = b"\xff" * 12 + b"\x88\xb5" + b"x" * 1_500

    def __init__(self, users: dict[int, int]) -> None:
        """``users``: {minor: number of sockets}."""
        self.selector = selectors.DefaultSelector()
        for minor, count in users.items():
            for _ in range(count):
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
                # Together somewhat less than the 1,000 packets that the queue holds.
                sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 800_000 // count)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MAJOR << 16 | minor)
                sock.bind(("wan0", 0))
                self.selector.register(sock, selectors.EVENT_WRITE)

    def send(self, seconds: float) -> None:
        """Keep the queues full for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for key, _events in self.selector.select(0.01):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    while time.monotonic() < end:
                        key.fileobj.send(self.FRAME)
                except OSError as error:  # the socket is full, or the queue
                    assert error.errno in (errno.EAGAIN, errno.ENOBUFS)

    def close(self) -> None:
        for key in list(self.selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self.selector.close()


class Pipe:
    """Sends datagrams out of the WAN device, as a user's downloads leave it."""

    def __init__(self) -> None:
        run("ip", "address", "add", "192.0.2.1/24", "dev", "wan0")
        run("ip", "neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "wan0")
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)

    def send(self, minor: int, size: int, within_s: float = 10.0) -> int:
        """Send ``size`` bytes through a class, or what it lets through in the time."""
        # HTB takes the priority of a packet for its class, without any filter.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MAJOR << 16 | minor)
        self._sock.settimeout(0.2)
        sent, until = 0, time.monotonic() + within_s
        while sent < size and time.monotonic() < until:
            try:
                sent += self._sock.sendto(bytes(1400), ("192.0.2.2", 9))
            except TimeoutError:
                continue
        return sent
