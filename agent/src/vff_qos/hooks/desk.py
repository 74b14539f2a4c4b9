"""The application: what engines ask, and what they are told.

Every path begins with the token, at which `room` has looked before anything comes here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bottle import Bottle, HTTPResponse, request, response

from ..core.hooks.requests import Login, read_goproxy, read_hysteria, read_reports, summed
from ..core.policy.terms import REFUSE
from .agent import Agent
from .kicks import NotAnswered, TrafficStats
from .panel import Panel, Yes
from .standing import Standing
from .store import Store
from .users import TooMany, Users


@dataclass
class Logins:
    """What became of logins."""

    let_in: int = 0
    refused: int = 0
    cut: int = 0
    busy: int = 0
    malformed: int = 0
    #: Let in, but the engine has not told from which address and port: nobody can limit them.
    no_flow: int = 0


@dataclass
class Desk:
    """What routes work with."""

    token: str
    users: Users | None
    panel: Panel | None
    agent: Agent
    standing: Standing
    store: Store
    stats: TrafficStats | None
    counts: Logins

    # -- judging ----------------------------------------------------------------------------------

    def hysteria(self, login: Login, text: str, asked: dict[str, Any]) -> Yes | None:
        """Who comes with this text, or None."""
        name = self.users.who(text, login.address) if self.users is not None else None
        found = Yes(name) if name is not None else None
        if found is None and self.panel is not None:
            found = self.panel.hysteria(asked)
        return self._admitted(found, login, "udp")

    def goproxy(self, login: Login, query: dict[str, str]) -> Yes | None:
        """The same of a name and a password."""
        name, found = query.get("user", ""), None
        if self.users is not None and self.users.is_right(
            name, query.get("pass", ""), login.address
        ):
            found = Yes(name)
        elif self.panel is not None and name:
            found = self.panel.goproxy(query)
        return self._admitted(found, login, "tcp")

    def _admitted(self, found: Yes | None, login: Login, protocol: str) -> Yes | None:
        """Whoever is right and not cut off; the agent knows of it before the engine does."""
        if found is None:
            self.counts.refused += 1
            return None
        if self.standing.is_cut(found.user):
            self.counts.cut += 1
            return None
        self.counts.let_in += 1
        if login.client:
            self.agent.tell(found.user, login.client, protocol, login.local)
        else:
            self.counts.no_flow += 1
        return found


def make_app(desk: Desk) -> Bottle:
    """The WSGI application."""
    app = Bottle()
    prefix = f"/{desk.token}" if desk.token else ""
    for path, methods, answer in (
        ("/hysteria", ["POST"], _hysteria),
        ("/goproxy/auth", ["GET"], _goproxy_auth),
        ("/goproxy/traffic", ["GET", "POST"], _goproxy_traffic),
        ("/usage", ["GET"], _usage),
        ("/status", ["GET"], _status),
    ):
        app.route(prefix + path, methods, partial(answer, desk))
    app.default_error_handler = _told
    return app


def _hysteria(desk: Desk) -> dict[str, Any]:
    try:
        login, text, asked = read_hysteria(request.body.read())
    except ValueError as error:
        desk.counts.malformed += 1
        raise _refusal(400, str(error)) from error
    found = _in_time(desk, lambda: desk.hysteria(login, text, asked))
    return {"ok": found is not None, "id": "" if found is None else found.user}


def _goproxy_auth(desk: Desk) -> HTTPResponse:
    query = _query()
    found = _in_time(desk, lambda: desk.goproxy(read_goproxy(query), query))
    if found is None:
        raise _refusal(401, "no such user, or another password")
    return HTTPResponse("", 204, {**_rates(desk, found.user), **found.headers})


def _goproxy_traffic(desk: Desk) -> HTTPResponse:
    try:
        entries = json.loads(request.body.read()) if request.method == "POST" else [_query()]
        reports = read_reports(entries if isinstance(entries, list) else [entries])
    except (ValueError, RecursionError) as error:
        desk.counts.malformed += 1
        raise _refusal(400, str(error)) from error
    for report in reports:
        if report.client:
            desk.agent.tell(report.user, report.client, "tcp", report.local)
    desk.store.add_reported(summed(reports))
    return HTTPResponse("", 204)


def _usage(desk: Desk) -> dict[str, Any]:
    found: dict[str, Any] = {"reported": desk.store.reported(), "hysteria": None}
    if desk.stats is not None:
        try:
            found["hysteria"] = desk.stats.traffic()
        except NotAnswered as error:
            raise _refusal(502, str(error)) from error
    return found


def _status(desk: Desk) -> dict[str, Any]:
    return {
        **vars(desk.counts),
        "told": desk.agent.told,
        "lost": desk.agent.lost,
        "agent": desk.agent.away,
        "users": None if desk.users is None else len(desk.users),
        "users_refused": "" if desk.users is None else desk.users.refused,
        "panel": "" if desk.panel is None else desk.panel.away,
        "panel_asked": 0 if desk.panel is None else desk.panel.asked,
        "without_panel": 0 if desk.panel is None else desk.panel.without,
        "kicked": 0 if desk.stats is None else desk.stats.kicked,
        "stats": "" if desk.stats is None else desk.stats.trouble,
        "standing": desk.standing.trouble,
        "store": desk.store.trouble,
    }


def _query() -> dict[str, str]:
    """The query, decoded; of what stands twice the first."""
    fields = request.query.decode()
    return {name: fields[name] for name in fields}


def _in_time(desk: Desk, judge: Callable[[], Yes | None]) -> Yes | None:
    try:
        return judge()
    except TooMany as error:
        desk.counts.busy += 1
        raise _refusal(503, "too many secrets are being looked at; try again") from error


def _rates(desk: Desk, user: str) -> dict[str, str]:
    """What GoProxy may be told of a person's limits: the kernel holds them, and more exactly."""
    limits = desk.standing.limits(user)
    told: dict[str, str] = {}
    if limits is None:
        return told
    if limits.upload_bps is not None and limits.download_bps is not None:
        told["userTotalRate"] = str(max(limits.upload_bps, limits.download_bps) // 8)
    # GoProxy knows no other way than to refuse.
    if limits.connections is not None and limits.over_connections == REFUSE:
        told["userconns"] = str(limits.connections)
    return told


def _refusal(status: int, sentence: str) -> HTTPResponse:
    body = json.dumps({"error": sentence}) + "\n"
    return HTTPResponse(body, status, {"Content-Type": "application/json"})


def _told(error: Any) -> str:
    """What is not there, or went wrong; the trace goes to the journal."""
    response.content_type = "application/json"
    if error.traceback:
        print(error.traceback, file=sys.stderr, flush=True)
    return json.dumps({"error": error.status_line}) + "\n"
