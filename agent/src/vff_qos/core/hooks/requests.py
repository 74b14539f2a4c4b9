"""What engines ask and report: from a request to what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..claims.webhook_event import read_email, read_end

#: Of one report: GoProxy posts at most what has changed within 5 s.
MAX_REPORTS = 20_000
_MAX_BYTES = 1 << 62
_WHOLE = re.compile(r"\d{1,19}", re.ASCII)


class Login(NamedTuple):
    """Somebody wants in.  ``client`` and ``local`` are ends such as ``192.0.2.5:443``, empty where
    the engine does not tell them; ``address`` is the client's without the port."""

    client: str
    address: str
    local: str = ""


class Moved(NamedTuple):
    """One report: so many bytes of a user's, over the connection from ``client`` (or empty)."""

    user: str
    client: str
    local: str
    size: int


def read_hysteria(body: bytes) -> tuple[Login, str, dict[str, Any]]:
    """A login, the text that its client has sent, and the request as it was.

    Raises ValueError (one sentence).
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not JSON") from error
    if not isinstance(data, dict) or not all(
        isinstance(data.get(k), str) for k in ("addr", "auth")
    ):
        raise ValueError("the body is no object with addr and auth")
    return _login(data["addr"], ""), data["auth"], data


def read_goproxy(query: Mapping[str, str]) -> Login:
    """A login; ``client_addr`` or ``ip`` say from where."""
    return _login(query.get("client_addr", "") or query.get("ip", ""), query.get("local_addr", ""))


def _login(client: str, local: str) -> Login:
    if _is_end(client):
        return Login(client, client.rpartition(":")[0].strip("[]"), local if _is_end(local) else "")
    return Login("", client, "")


def _is_end(text: str) -> bool:
    return not text.startswith(("tcp:", "udp:")) and read_end(text) is not None


def read_reports(entries: Iterable[object]) -> list[Moved]:
    """What GoProxy reports, by query or in an array.  Raises ValueError (one sentence)."""
    found = []
    for index, entry in enumerate(entries):
        if index >= MAX_REPORTS:
            raise ValueError(f"more than {MAX_REPORTS} reports at once")
        if not isinstance(entry, Mapping):
            raise ValueError(f"[{index}] is no object")
        size = str(entry.get("bytes", 0))
        if not _WHOLE.fullmatch(size) or int(size) >= _MAX_BYTES:
            raise ValueError(f"[{index}] bytes is no whole number below 2^62")
        user = entry.get("username") or ""
        if not isinstance(user, str) or (user and read_email(user) is None):
            raise ValueError(f"[{index}] username is not printable text")
        login = _login(str(entry.get("client_addr", "")), str(entry.get("server_addr", "")))
        if user:
            found.append(Moved(user, login.client, login.local, int(size)))
    return found


def summed(reports: Iterable[Moved]) -> dict[str, tuple[int, int]]:
    """{user: (bytes, reports)}."""
    found: dict[str, tuple[int, int]] = {}
    for report in reports:
        count, number = found.get(report.user, (0, 0))
        found[report.user] = count + report.size, number + 1
    return found
