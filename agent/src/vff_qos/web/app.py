"""The application: who may ask, what every answer bears, and which routes there are."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from bottle import Bottle, HTTPResponse, request, response

from ..config import Paths
from ..core.web_access import has_token, is_asked_by_name
from . import api, files, health, scrape
from .observer import Observer

#: What every answer bears.  Scripts, styles and connections are our own alone; nothing frames us.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: What anybody may ask who reaches us: it tells nothing.
_OPEN = ("/healthz",)


@dataclass(frozen=True)
class Site:
    """What routes work with."""

    paths: Paths
    #: The address that the page listens at, empty for a unix socket.
    bound: str = ""
    #: Further names that it may be asked for by.
    hosts: tuple[str, ...] = ()
    #: What whoever asks must bear; empty: nothing.
    token: bytes = b""
    #: Who looks at the node; to be closed before the server ends.
    observers: list[Observer] = field(default_factory=list)


def make_app(site: Site) -> Bottle:
    """The WSGI application."""
    app = Bottle()

    def admit() -> None:
        if not is_asked_by_name(request.get_header("Host", ""), site.bound, site.hosts):
            raise refusal(421, "this page is not served by that name (qos_web_hosts adds names)")
        if request.method not in ("GET", "HEAD"):
            raise refusal(405, "this page only shows: GET", Allow="GET, HEAD")
        given = request.get_header("Authorization", "")
        if site.token and request.path not in _OPEN and not has_token(given, site.token):
            ask = 'Basic realm="vff-qos: any name, the token as the password", charset="UTF-8"'
            raise refusal(401, "a token is needed (qos_web_token_file)", WWW_Authenticate=ask)

    def dress() -> None:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)

    app.add_hook("before_request", admit)
    app.add_hook("after_request", dress)
    app.default_error_handler = _told
    # Every module of routes has add_routes(app, site); a new one is named here.
    for module in (health, api, files, scrape):
        module.add_routes(app, site)
    return app


def refusal(status: int, sentence: str, **headers: str) -> HTTPResponse:
    """An answer that says why there is none."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    kind, text = _worded(sentence)
    return HTTPResponse(text, status, {**_HEADERS, **fields, "Content-Type": kind})


def _worded(sentence: str) -> tuple[str, str]:
    """A sentence as programs, or as people read it."""
    if request.path.startswith("/api/"):
        return "application/json", json.dumps({"error": sentence})
    return "text/plain; charset=utf-8", sentence + "\n"


def _told(error: Any) -> str:
    """What is not there, or went wrong, in one plain line; the trace goes to the journal."""
    response.content_type, text = _worded(error.status_line)
    for name, value in _HEADERS.items():
        response.headers[name] = value
    if error.traceback:
        print(error.traceback, file=sys.stderr, flush=True)
    return text
