"""What every engine of tunnels needs in a test: a certificate, and a target that answers."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from .harness import run


def certificate(directory: Path) -> None:
    """``cert.pem`` and ``key.pem`` of a server that signs for itself."""
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-nodes", "-subj", "/CN=lab", "-days", "2", "-keyout", str(directory / "key.pem"),
        "-out", str(directory / "cert.pem"),
    )  # fmt: skip


class Echo:
    """Whatever is sent comes back, and so it is known when a connection lives."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    @staticmethod
    def _answer(peer: socket.socket) -> None:
        try:
            while data := peer.recv(65_536):
                peer.sendall(data)
        except OSError:
            pass

    def close(self) -> None:
        self._sock.close()
