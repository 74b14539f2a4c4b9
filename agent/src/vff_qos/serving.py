"""The server of what answers over HTTP: the page, and the hooks."""

from __future__ import annotations

import socket
from typing import Any

from waitress.server import create_server


def make_server(
    app: Any, listener: socket.socket, threads: int, connections: int, body_bytes: int
) -> Any:
    """A waitress server with bounds for strangers: ``connections`` at once, and bodies of at most
    ``body_bytes``.  Its ``run`` serves."""
    return create_server(
        app,
        sockets=[listener],
        threads=threads,
        ident=None,
        connection_limit=connections,
        channel_timeout=60,
        channel_request_lookahead=1,
        max_request_header_size=16_384,
        max_request_body_size=body_bytes,
        asyncore_use_poll=True,
        clear_untrusted_proxy_headers=True,
    )
