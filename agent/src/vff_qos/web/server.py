"""``vff-qos web``: serves the page where ``web_bind`` says, until it is told to end."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

from ..commands.node import Node
from ..config import read_secret
from ..core.settings import Settings
from ..core.web_access import TOKEN_BYTES
from ..follower.memory import give_memory_back
from ..journal import notify
from ..serving import make_server
from ..sources.listener import open_listener
from .api import MAX_STREAMS
from .app import Site, make_app

#: Streams take a thread each; so many others answer at once.
_THREADS = MAX_STREAMS + 4


def serve(node: Node) -> None:
    """Serve until SIGTERM.  Raises ConfigError, SourceError."""
    # What is wrong with the node the agent tells the journal; the page shows it.
    os.environ.pop("JOURNAL_STREAM", None)
    give_memory_back()
    settings = node.settings_in_force
    token = read_token(node, settings)
    listener, made = open_listener(settings.web_bind, "", 0o600)
    bound = "" if listener.family == socket.AF_UNIX else listener.getsockname()[0]
    site = Site(node.paths, bound, settings.web_hosts, token)
    server = make_server(make_app(site), listener, _THREADS, 200, 4_096)

    def end(*_signal: Any) -> None:
        for observer in site.observers:
            observer.is_closing = True
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    notify("READY=1")
    try:
        server.run()
    finally:
        server.close()
        if made:
            os.unlink(made)


def read_token(node: Node, settings: Settings) -> bytes:
    """What whoever asks must bear; empty where nothing is asked for.  Raises ConfigError."""
    path = settings.web_token_file
    if not path:
        return b""
    return read_secret(path, node.paths, *TOKEN_BYTES).encode()
