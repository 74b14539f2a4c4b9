"""Kind of source: sing-box's own stream of connections (1.14 and newer)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.health.report import TOLD
from ..core.source_settings import Kind, Option, Problem, SourceSettings

if TYPE_CHECKING:
    from .base import Source

_HOST_PORT = re.compile(r"(?:127(?:\.\d{1,3}){3}|\[::1\]):(?P<port>\d{1,5})", re.ASCII)
_ADDRESS = Option(
    "address", _HOST_PORT, "an address of this host and a port such as '127.0.0.1:9091'"
)
_SECRET_FILE = Option("secret_file", re.compile(r"/[!-~]{1,255}"), "an absolute path")


def _check(options: Mapping[str, str]) -> Problem | None:
    if not options["address"]:
        return "address", "is needed: where sing-box's service 'api' listens, '127.0.0.1:9091'"
    found = _HOST_PORT.fullmatch(options["address"])
    try:
        ipaddress.ip_address(options["address"].rpartition(":")[0].strip("[]"))
    except ValueError:
        return "address", f"{options['address']!r} is not {_ADDRESS.what}"
    if found and not 1 <= int(found["port"]) <= 65_535:
        return "address", f"{found['port']} is not a port (1 to 65535)"
    if not options["secret_file"]:
        # A customer's connection through the proxy to 127.0.0.1 comes from a local process.
        return "secret_file", (
            "is needed: a file with the secret of sing-box's service 'api'; without a secret every "
            "customer can see and end all connections through the proxy itself"
        )
    return None


def _open(settings: SourceSettings, _checkpoint: Any, _replay_since_s: float | None) -> Source:
    from .singbox import SingboxSource  # noqa: PLC0415

    return SingboxSource(settings.options["address"], settings.options["secret_file"])


KIND = Kind(
    "singbox",
    (_ADDRESS, _SECRET_FILE),
    TOLD,
    lambda options: f"the connections of sing-box at {options['address']}",
    _open,
    _check,
)
