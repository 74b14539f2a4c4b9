"""Reports of usage: what is told of whom, in which form, and when it is tried again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

#: Formats, as the settings name them.
JSON, TRAFFIC_URL, TRAFFIC_URL_GLOBAL = "json", "traffic-url", "traffic-url-global"
#: What a ``traffic-url`` of proxy programs is told of each connection.  Of these a class knows
#: bytes and user; the others stay empty, because receivers ask for all of them.
_TRAFFIC_KEYS = (
    "bytes", "client_addr", "id", "server_addr", "target_addr", "username", "out_local_addr",
    "out_remote_addr", "upstream", "sniff_domain",
)  # fmt: skip
#: Pauses after failures begin with the first and double up to the second, in seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 3_600.0

Record = dict[str, Any]


class Total(NamedTuple):
    """What a user has moved since ``began_s`` (seconds since the epoch), in bytes."""

    username: str
    began_s: float
    upload: int
    download: int


class Told(NamedTuple):
    """What was told of a user until ``until_s``; ``began_s`` as in `Total`."""

    began_s: float
    upload: int
    download: int
    until_s: float


def new_records(totals: Iterable[Total], told: Mapping[str, Told], until_s: float) -> list[Record]:
    """What is to be told of those who have moved something since they were told of.

    A total that began anew (the state was lost) is told from its beginning.  ``began`` is exact
    and for us.
    """
    found = []
    for total in totals:
        before = told.get(total.username)
        if before is None or before.began_s != total.began_s:
            before = Told(total.began_s, 0, 0, total.began_s)
        upload, download = total.upload - before.upload, total.download - before.download
        if upload or download:
            found.append(
                {
                    "username": total.username,
                    "upload": upload,
                    "download": download,
                    "since": round(before.until_s),
                    "until": round(max(until_s, before.until_s)),
                    "upload_total": total.upload,
                    "download_total": total.download,
                    "total_since": round(total.began_s),
                    "began": total.began_s,
                }
            )
    return found


def join_told(
    told: dict[str, Told], totals: Mapping[str, Total], people: Mapping[str, str]
) -> list[str]:
    """What was told of somebody whose account is another's now was told of that one; returns whom
    that concerns.

    Or the other's next report would tell it again.
    """
    concerned = []
    for username in [name for name in told if name in people and name not in totals]:
        person = people[username]
        total = totals.get(person)
        if total is None:
            continue
        one, other = told.pop(username), told.get(person, Told(total.began_s, 0, 0, 0.0))
        told[person] = Told(
            total.began_s,
            min(one.upload + other.upload, total.upload),
            min(one.download + other.download, total.download),
            max(one.until_s, other.until_s),
        )
        concerned.append(person)
    return concerned


class HttpRequest(NamedTuple):
    """One request; ``key`` names what it tells, the same each time it is tried."""

    method: str
    target: str
    key: str
    body: bytes | None
    is_success: Callable[[int], bool]


def requests(url: str, form: str, key: str, records: list[Record]) -> list[HttpRequest]:
    """What tells ``records`` to a receiver at ``url``, in order."""
    parts = urlsplit(url)
    path = parts.path or "/"
    if form == TRAFFIC_URL:
        return [
            HttpRequest("GET", _with_query(path, parts.query, one), one["id"], None, _is_no_content)
            for one in map(_traffic, records)
        ]
    target = f"{path}?{parts.query}" if parts.query else path
    if form == TRAFFIC_URL_GLOBAL:
        body = json.dumps([_traffic(record) for record in records])
        return [HttpRequest("POST", target, key, body.encode(), _is_no_content)]
    return [HttpRequest("POST", target, key, json.dumps(records).encode(), _is_ok)]


def _traffic(record: Record) -> Record:
    """The record of one user as one connection's."""
    known = {
        "bytes": record["upload"] + record["download"],
        "id": record["id"],
        "username": record["username"],
    }
    return {key: known.get(key, "") for key in _TRAFFIC_KEYS}


def _with_query(path: str, query: str, values: Record) -> str:
    return f"{path}?{query}&{urlencode(values)}" if query else f"{path}?{urlencode(values)}"


def _is_ok(status: int) -> bool:
    return 200 <= status < 300


def _is_no_content(status: int) -> bool:
    return status == 204


def pause_s(failures: int, share: float, asked_s: float = 0.0) -> float:
    """How long nothing is sent after so many ``failures`` in a row.

    ``share`` from 0 to 1 is chance, so that nodes do not come back all at once; ``asked_s`` is
    what the receiver asked for (Retry-After).
    """
    longest = min(_FIRST_PAUSE_S * (1 << min(failures - 1, 20)), _LONGEST_PAUSE_S)
    return max(longest * (0.5 + share / 2), min(asked_s, _LONGEST_PAUSE_S))


def shown_url(url: str) -> str:
    """A URL without its query, which may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
