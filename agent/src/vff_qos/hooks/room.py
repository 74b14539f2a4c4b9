"""Who may take room at the hooks' port, and for how long: its every customer can reach it.

A proxy's customers reach the loopback of its node through the proxy itself.  So a request without
the token is refused at its head, and none of its body is kept; and a connection that has asked
nothing right yet goes first when there are too many.
"""

from __future__ import annotations

import hmac
import time
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError

#: An engine asks at once and has few connections.
_MAX_CONNECTIONS = 256
_FRESH_S = 0.05


def channel_of(token: str) -> type[HTTPChannel]:
    """The class of a server's connections; empty: a unix socket, whose clients the kernel knows."""
    wanted = token.encode()

    class Parser(HTTPRequestParser):  # type: ignore[misc]
        """Looks at the token before it reads on."""

        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            given = self.path.lstrip("/").partition("/")[0].encode("latin-1", "replace")
            if wanted and not hmac.compare_digest(given, wanted):
                raise ParsingError("there is no such path")

    class Channel(HTTPChannel):  # type: ignore[misc]
        """One connection."""

        parser_class = Parser

        def __init__(self, server: Any, *args: Any, **options: Any) -> None:
            super().__init__(server, *args, **options)
            #: Whether a whole request with the token has come here.
            self.has_asked = False
            if len(server.active_channels) > _MAX_CONNECTIONS:
                make_room(self, server.active_channels.values())

        def received(self, data: bytes) -> bool:
            going_on: bool = super().received(data)
            if self.requests and not self.requests[-1].error:
                self.has_asked = True
            return going_on

    return Channel


def make_room(comer: Any, connections: Any) -> None:
    """Close the one that is worth least, unless all are at work."""
    until = time.time() - _FRESH_S
    idle = [
        one for one in connections
        if one is not comer and not one.requests and not one.will_close
        and one.creation_time < until
    ]  # fmt: skip
    if idle:
        worst = min(idle, key=lambda one: (one.has_asked, one.creation_time))
        worst.will_close = True
