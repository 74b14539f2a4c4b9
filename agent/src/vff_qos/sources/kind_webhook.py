"""Kind of source: the webhook of Xray's routing rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.health.report import TOLD
from ..core.source_settings import Kind, Option, Problem, SourceSettings

if TYPE_CHECKING:
    from .base import Source

_LISTEN = re.compile(
    r"unix:/[!-~]{1,106}|@[A-Za-z0-9._-]{1,100}|(?:127(?:\.\d{1,3}){3}|\[::1\]):(?P<port>\d{1,5})",
    re.ASCII,
)
#: Where a source listens; who may write to a unix socket (``@name``: an abstract one, unix(7));
#: what must be shown on a port.
LISTEN = Option("listen", _LISTEN, "'unix:/absolute/path', '@name' or '127.0.0.1:port'")
GROUP = Option("group", re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}"), "the name of a group")
TOKEN = Option(
    "token",
    re.compile(r"[A-Za-z0-9._~+/=-]{16,256}"),
    "16 to 256 letters, digits or ._~+/=-",
    is_secret=True,
)


def check_listener(options: Mapping[str, str]) -> Problem | None:
    """What listens for a told word must be out of every customer's reach."""
    if not options["listen"]:
        return "listen", "is needed: 'unix:/run/vff-qos/webhook.sock', '@name' or '127.0.0.1:port'"
    found = _LISTEN.fullmatch(options["listen"])
    if found and found["port"]:
        if not 1 <= int(found["port"]) <= 65_535:
            return "listen", f"{found['port']} is not a port (1 to 65535)"
        if not options["token"]:
            # A customer's connection through the proxy to 127.0.0.1 comes from a local process.
            return "token", (
                "is needed where it listens on a port: without it every customer can post through "
                "the proxy itself; a unix socket needs none"
            )
    return None


def _open(settings: SourceSettings, _checkpoint: Any, _replay_since_s: float | None) -> Source:
    from .webhook import WebhookSource  # noqa: PLC0415

    options = settings.options
    return WebhookSource(options["listen"], options["group"], token=options["token"])


KIND = Kind(
    "webhook",
    (LISTEN, GROUP, TOKEN),
    TOLD,
    lambda options: f"the webhook at {options['listen']}",
    _open,
    check_listener,
    has_emails=True,
)
