"""The settings of the hooks: what ``/etc/vff-qos/hooks.yml`` may hold, checked whole.

A file of its own: it holds a token, and the agent has no need of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..document import Document
from ..units import parse_duration

LISTEN = "127.0.0.1:8014"
FLOWS_LISTEN = "unix:/run/vff-qos-flows.sock"

_LISTEN = re.compile(
    r"unix:/[!-~]{1,106}|(?:127(?:\.\d{1,3}){3}|\[::1\]):(?P<port>\d{1,5})", re.ASCII
)
_UNIX = re.compile(r"unix:/[!-~]{1,106}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_FILE = re.compile(r"/[^\0\n]{1,4095}")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?"
    r"(?:/[!\"$-~]*)?",
    re.ASCII,
)
_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){3}|\[::1\]|localhost", re.ASCII)
KEYS = (
    "listen",
    "token",
    "flows",
    "users_file",
    "auth_url",
    "auth_ca_file",
    "auth_timeout_sec",
    "auth_cache",
    "hysteria_stats_url",
    "hysteria_stats_secret",
)


@dataclass(frozen=True)
class HookSettings:
    """Where hooks are answered, by whom logins are judged, and who is told.  Times in seconds."""

    #: ``unix:/path`` or ``127.0.0.1:port``; a port needs the token.
    listen: str = LISTEN
    token: str = ""
    #: The agent's socket for flows.
    flows: str = FLOWS_LISTEN
    #: At least one of these two.
    users_file: str = ""
    auth_url: str = ""
    auth_ca_file: str = ""
    auth_timeout_s: int = 3
    #: For so long who was let in before is let in while the panel is away; 0: nobody.
    auth_cache_s: int = 86_400
    stats_url: str = ""
    stats_secret: str = ""


def parse_hooks(text: bytes, where: str) -> HookSettings:
    """Settings from the text of a file; ConfigError names file, line, key and what is allowed."""
    doc = Document(text, where)
    data = doc.check_keys((), doc.data, KEYS)
    base = HookSettings()
    found = HookSettings(
        listen=_text(doc, data, "listen", _LISTEN, "'unix:/absolute/path' or '127.0.0.1:port'")
        or base.listen,
        token=_text(doc, data, "token", _TOKEN, "16 to 256 letters, digits or ._~-"),
        flows=_text(doc, data, "flows", _UNIX, "'unix:/absolute/path'") or base.flows,
        users_file=_text(doc, data, "users_file", _FILE, "an absolute path"),
        auth_url=_url(doc, data, "auth_url"),
        auth_ca_file=_text(doc, data, "auth_ca_file", _FILE, "an absolute path"),
        # Hysteria gives a hook up after 10 s.
        auth_timeout_s=_whole(doc, data, "auth_timeout_sec", base.auth_timeout_s, 1, 8),
        auth_cache_s=_cache(doc, data, base.auth_cache_s),
        stats_url=_stats_url(doc, data),
        stats_secret=_text(
            doc, data, "hysteria_stats_secret", re.compile(r"[!-~]{1,256}"), "printable text"
        ),
    )
    port = _LISTEN.fullmatch(found.listen)
    if port and port["port"]:
        if not 1 <= int(port["port"]) <= 65_535:
            raise doc.fail(("listen",), f"{port['port']} is not a port (1 to 65535)")
        if not found.token:
            # A customer's connection through the proxy to 127.0.0.1 comes from a local process.
            raise doc.fail(
                ("token",),
                "is needed where listen is a port: without it every customer can ask through the "
                "proxy itself; a unix socket needs none",
            )
    if not found.users_file and not found.auth_url:
        raise doc.fail(
            ("users_file",), "or auth_url is needed: who may log in, or who is asked for it"
        )
    return found


def _url(doc: Document, data: dict[str, Any], key: str) -> str:
    url = _text(doc, data, key, _URL, "a URL such as 'https://panel.example.com/auth'")
    if not url:
        return ""
    found = _URL.fullmatch(url)
    assert found is not None
    if not 1 <= int(found["port"] or 443) <= 65_535:
        raise doc.fail((key,), f"{found['port']} is not a port (1 to 65535)")
    if found["scheme"] == "http" and not _LOOPBACK.fullmatch(found["host"]):
        raise doc.fail(
            (key,),
            "must begin with https://: secrets go there; http:// is for an address of this host "
            "(127.0.0.1, [::1])",
        )
    return url


def _stats_url(doc: Document, data: dict[str, Any]) -> str:
    url = _url(doc, data, "hysteria_stats_url")
    if url.startswith("https:"):
        raise doc.fail(("hysteria_stats_url",), "must begin with http://: trafficStats has no TLS")
    return url


def is_local(url: str) -> bool:
    """Whether a URL leads to this host alone; an empty one does."""
    host = urlsplit(url).hostname or "localhost"
    return bool(_LOOPBACK.fullmatch(f"[{host}]" if ":" in host else host))


def _cache(doc: Document, data: dict[str, Any], default: int) -> int:
    value = data.get("auth_cache", default)
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    try:
        return value if value is default else parse_duration(str(value))
    except ValueError as error:
        raise doc.fail(("auth_cache",), f"{value!r} is not 0 or a time such as '24h'") from error


def _text(
    doc: Document, data: dict[str, Any], key: str, grammar: re.Pattern[str], what: str
) -> str:
    """A string that matches ``grammar``; empty if the key is missing or empty."""
    value = data.get(key, "")
    if value != "" and (not isinstance(value, str) or not grammar.fullmatch(value)):
        # Never the value itself: it may be a secret.
        shown = "the value" if key.endswith(("token", "url", "secret")) else repr(value)
        raise doc.fail((key,), f"{shown} is not {what}")
    return str(value)


def _whole(doc: Document, data: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise doc.fail((key,), f"{value!r} is not a whole number from {low} to {high}")
    return value
