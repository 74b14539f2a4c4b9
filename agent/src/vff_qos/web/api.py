"""``/api/v1/``: what commands print with ``--json``, and its description (OpenAPI 3.1)."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from bottle import Bottle, HTTPResponse, request, response

from .. import __version__
from ..commands.flows import read_restricted
from ..commands.node import Node
from ..commands.usage_table import read_totals, read_usage
from ..core.events import EVENTS
from ..core.figures import SORTS
from ..core.usage_query import DAY, HOUR, MONTH
from ..errors import QosError, Refused
from ..runfile import read_diagnosis_file
from . import schemas
from .asking import NOTABLE, explain, read_events
from .observer import Busy, Observer

if TYPE_CHECKING:
    from .app import Site

PREFIX = "/api/v1"
#: So many pages are told what changes; each takes a thread.
MAX_STREAMS = 24
#: A sum over all users and many hours is good for so long.
_TOTALS_S = 60.0
#: A stream is told that it lives.
_BEAT_S = 10.0
#: Questions of a time or a name have no more letters.
_MAX_TEXT = 256
_TEXT = r"^[^\u0000-\u001f\u007f]+$"

Answer = dict[str, Any]
_NOTHING: Answer = {"upload_bytes": 0, "download_bytes": 0, "spans": []}


class BadQuestion(Exception):
    """A parameter that is not allowed; the message says which and what is."""


class Param(NamedTuple):
    """A parameter of a question: text, or a whole number where ``high`` is given."""

    name: str
    what: str
    default: str | int | None = None
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    required: bool = False

    def read(self, given: str | None) -> Any:
        """Its value.  Raises BadQuestion."""
        if given is None:
            if self.required:
                raise BadQuestion(f"{self.name} is missing: {self.what}")
            return self.default
        if self.high:
            if not (given.isascii() and given.isdigit()) or not (
                len(given) < 10 and self.low <= int(given) <= self.high
            ):
                raise BadQuestion(
                    f"{self.name}: {given!r} is not a whole number from {self.low} to {self.high}"
                )
            return int(given)
        if self.choices and given not in self.choices:
            raise BadQuestion(f"{self.name}: {given!r} is not one of {', '.join(self.choices)}")
        if not 1 <= len(given) <= _MAX_TEXT or not re.fullmatch(_TEXT, given):
            raise BadQuestion(f"{self.name}: must be 1 to {_MAX_TEXT} letters, none of control")
        return given

    def described(self) -> Answer:
        """As OpenAPI has it."""
        schema: Answer = {"type": "string", "pattern": _TEXT, "maxLength": _MAX_TEXT}
        if self.high:
            schema = {"type": "integer", "minimum": self.low, "maximum": self.high}
        elif self.choices:
            schema = {"type": "string", "enum": list(self.choices)}
        if self.default is not None:
            schema["default"] = self.default
        return {
            "name": self.name,
            "in": "query",
            "description": self.what,
            "required": self.required,
            "schema": schema,
        }


class Route(NamedTuple):
    """A question, and the schema of its answer."""

    path: str
    what: str
    params: tuple[Param, ...]
    schema: schemas.Schema
    answer: Callable[[Api, dict[str, Any]], Answer]


class Api:
    """What the routes answer with."""

    def __init__(self, site: Site) -> None:
        self.paths, self.observer = site.paths, Observer(site.paths)
        self._totals: dict[tuple[str | None, ...], tuple[float, Answer]] = {}
        self._summing = threading.Lock()
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)

    def status(self, _asked: dict[str, Any]) -> Answer:
        return self.observer.picture().status

    def live(self, _asked: dict[str, Any]) -> Answer:
        now = self.observer.picture().now
        return {"now": now, "points": self.observer.trail()}

    def users(self, asked: dict[str, Any]) -> Answer:
        time_s = self.observer.picture().now["time"]
        if asked["email"] is not None:
            one = self.observer.user(asked["email"])
            return {"time": time_s, "total": int(one is not None), "users": [one] if one else []}
        patterns = [asked["match"]] if asked["match"] else []
        total, users = self.observer.users(patterns, asked["sort"], asked["offset"], asked["limit"])
        return {"time": time_s, "total": total, "users": users}

    def explain(self, asked: dict[str, Any]) -> Answer:
        return explain(self.paths, asked["email"])

    def usage(self, asked: dict[str, Any]) -> Answer:
        times = asked["since"], asked["until"], asked["by"]
        email = asked["email"]
        if email is None:
            return self._totals_of(*times)
        with Node(self.paths, prints=False) as node:
            found = read_usage(node, [email], *times, exact=True)
        (one,) = found["users"] or [_NOTHING]
        return {**found, "users": one, "others": _NOTHING}

    def _totals_of(self, *times: str | None) -> Answer:
        # A sum at a time: whoever asks for the same meanwhile gets what the first one got.
        with self._summing:
            made_s, found = self._totals.get(times, (float("-inf"), {}))
            if time.monotonic() - made_s > _TOTALS_S:
                with Node(self.paths, prints=False) as node:
                    found = read_totals(node, *times)
                if len(self._totals) > 16:
                    self._totals.clear()
                self._totals[times] = time.monotonic(), found
            return found

    def restricted(self, _asked: dict[str, Any]) -> Answer:
        orders = self.observer.picture().status["overrides"]
        with Node(self.paths, prints=False) as node:
            return {"classes": read_restricted(node), "orders": orders}

    def events(self, asked: dict[str, Any]) -> Answer:
        kinds = (asked["kind"],) if asked["kind"] else NOTABLE
        return {"events": read_events(kinds, asked["limit"])}

    def doctor(self, _asked: dict[str, Any]) -> Answer:
        found = read_diagnosis_file(self.paths.run_dir)
        return found or {"time": None, "verdict": "", "reason": "", "findings": []}

    def stream(self, gone: Callable[[], bool]) -> Iterator[bytes]:
        """Events until the listener is ``gone``: ``now`` every two seconds, ``status`` when there
        was a look, ``trouble`` where there is no picture (HTML standard, 9.2)."""
        number, told_status = -1, None
        try:
            yield b"retry: 3000\n\n"
            while not gone() and not self.observer.is_closing:
                try:
                    picture = self.observer.picture(number, _BEAT_S)
                except QosError as error:
                    yield _event("trouble", json.dumps({"error": str(error)}))
                    time.sleep(2)
                    continue
                number = picture.number
                yield _event("now", picture.now_text)
                found = {**picture.status, "time": 0, "devices": None}
                if found != told_status:
                    told_status = found
                    yield _event("status", json.dumps(picture.status))
        finally:
            self.streams.release()


_EMAIL = "a user's name, as status has it"
_PATTERN = "users such as '*@example.com'"
_TIME = "2026-11, 2026-11-26, '2026-11-26 14:00', or 7d for so long ago"
ROUTES = (
    Route(
        "/status", "Verdict, findings and figures, as `vff-qos status --json`, without users.",
        (), schemas.STATUS, Api.status,
    ),
    Route(
        "/live", "The node now, and its rates of the last minutes as far as somebody watched: "
        "time, download, upload, and what of each is nobody's, in bit/s.",
        (), schemas.LIVE, Api.live,
    ),
    Route(
        "/users", "Users as `vff-qos top --json` has them, and each one's last minute in cells of "
        "five seconds, in bit/s.",
        (
            Param("email", _EMAIL + "; that one alone"),
            Param("match", _PATTERN),
            Param("sort", "what comes first", "rate", tuple(SORTS)),
            Param("offset", "after so many", 0, low=0, high=65_535),
            Param("limit", "so many at most", 50, low=1, high=500),
        ), schemas.USERS, Api.users,
    ),
    Route(
        "/explain", "Why a user has their limits, as `vff-qos explain EMAIL --json`.",
        (Param("email", _EMAIL, required=True),), schemas.EXPLAINED, Api.explain,
    ),
    Route(
        "/usage", "What was moved, as `vff-qos usage --json`: of one user, or of all together.",
        (
            Param("email", _EMAIL),
            Param("since", _TIME + "; the first of this month unless said"),
            Param("until", _TIME + "; now unless said"),
            Param("by", "one sum unless said", None, (HOUR, DAY, MONTH)),
        ), schemas.USAGE, Api.usage,
    ),
    Route(
        "/restricted", "Who is restricted and why, and the orders and penalties in force.",
        (), schemas.RESTRICTED, Api.restricted,
    ),
    Route(
        "/events", "What befell the node, from the journal, the latest first.",
        (
            Param("kind", "of this kind alone", None, tuple(EVENTS)),
            Param("limit", "so many at most", 50, low=1, high=500),
        ), schemas.EVENTS, Api.events,
    ),
    Route(
        "/doctor", "What `vff-qos doctor --json` found last, and when; null: nobody has looked.",
        (), schemas.DIAGNOSIS, Api.doctor,
    ),
)  # fmt: skip


def add_routes(app: Bottle, site: Site) -> None:
    """As `app.make_app` asks."""
    api = Api(site)
    site.observers.append(api.observer)
    for route in ROUTES:
        app.get(PREFIX + route.path, callback=_answering(api, route))
    text = json.dumps(description(), indent=1)
    app.get(f"{PREFIX}/openapi.json", callback=lambda: _json(text.encode()))
    app.get(f"{PREFIX}/stream", callback=lambda: _stream(api))


def _answering(api: Api, route: Route) -> Callable[[], bytes | HTTPResponse]:
    def answer() -> bytes | HTTPResponse:
        try:
            return _json(json.dumps(route.answer(api, _asked(route.params))).encode())
        except (BadQuestion, Refused) as error:
            return _failed(400, error)
        except QosError as error:
            return _failed(503, error)

    return answer


def _asked(params: tuple[Param, ...]) -> dict[str, Any]:
    """The parameters of this request.  Raises BadQuestion."""
    try:
        query = request.query.decode("utf-8")
    except UnicodeError as error:
        raise BadQuestion("the query is not UTF-8") from error
    names = [param.name for param in params]
    for name in query:
        if name not in names:
            allowed = ", ".join(names) or "none"
            raise BadQuestion(f"{name!r} is not a parameter here; allowed: {allowed}")
        if len(query.getall(name)) > 1:
            raise BadQuestion(f"{name} stands twice")
    return {param.name: param.read(query.get(param.name)) for param in params}


def _json(text: bytes) -> bytes:
    response.content_type = "application/json"
    return text


def _failed(status: int, error: Exception) -> HTTPResponse:
    text = json.dumps({"error": str(error)})
    fields = {"Content-Type": "application/json"}
    if status == 503:
        fields["Retry-After"] = "5"
    return HTTPResponse(text, status, fields)


def _stream(api: Api) -> Iterator[bytes] | HTTPResponse:
    if not api.streams.acquire(blocking=False):
        return _failed(503, Busy(f"{MAX_STREAMS} pages are open; ask again, or ask /live"))
    response.content_type = "text/event-stream"
    response.set_header("X-Accel-Buffering", "no")  # nginx would wait for more
    return api.stream(request.environ.get("waitress.client_disconnected", lambda: False))


def _event(name: str, text: str) -> bytes:
    return f"event: {name}\ndata: {text}\n\n".encode()


def description() -> Answer:
    """The OpenAPI description of all routes."""
    paths: Answer = {}
    for route in ROUTES:
        answers = {"200": _content("what was asked for", route.schema)}
        answers["400"] = _content("a parameter is not allowed", schemas.ERROR)
        answers["503"] = _content("the node could not be asked", schemas.ERROR)
        paths[PREFIX + route.path] = {
            "get": {
                "operationId": route.path.strip("/"),
                "summary": route.what,
                "parameters": [param.described() for param in route.params],
                "responses": answers,
            }
        }
    paths[f"{PREFIX}/stream"] = {
        "get": {
            "operationId": "stream",
            "summary": "Server-sent events: `now` as in /live, `status` as /status, `trouble`.",
            "responses": {
                "200": {"description": "events", "content": {"text/event-stream": {}}},
                "503": _content("too many listen", schemas.ERROR),
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vff-qos", "version": __version__, "license": {"name": "MIT"}},
        "paths": paths,
    }


def _content(what: str, schema: schemas.Schema) -> Answer:
    return {"description": what, "content": {"application/json": {"schema": schema}}}
