"""Sends as much as anybody takes to whoever connects: sender.py PORT..."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

BLOCK = bytes(65_536)


def serve(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=send, args=(peer,), daemon=True).start()


def send(peer: socket.socket) -> None:
    with peer, contextlib.suppress(OSError):  # whoever has gone
        while True:
            peer.sendall(BLOCK)


def main() -> None:
    listeners = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
    for listener in listeners[1:]:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    serve(listeners[0])


if __name__ == "__main__":
    main()
