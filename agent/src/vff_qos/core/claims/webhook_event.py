"""One event of Xray's routing-rule webhook: from the body of a POST to a claim.

A body, as Xray 26.3.23 to 26.10 writes it (app/router/webhook.go)::

    {"email": "alice@x", "network": "tcp", "source": "192.0.2.5:48625",
     "inboundTag": "vless-in", "inboundLocal": "198.51.100.1:443", "ts": 1795191106, ...}

The engine escapes every string, so no name that a customer chose can leave its place: these
claims are never tainted.  ``network`` is that of the target within the tunnel and says nothing
about the outer flow.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, NamedTuple

from .accesslog import Claim, Endpoint, pack_end, parse_source
from .email import MAX_EMAIL_BYTES

#: An engine gives up a POST after 5 s; an older one lay in a queue, and its tuple may be reused.
MAX_AGE_S = 60.0
_MAX_TAG_BYTES = 512

#: As in the access log: no control characters.  The engine's encoder puts U+FFFD in the place of
#: bytes that are no UTF-8, so that several names would become one; half characters are none.
_EMAIL = re.compile(f"[^\x00-\x1f\x7f\ufffd\ud800-\udfff]{{1,{MAX_EMAIL_BYTES}}}")
_END = re.compile(
    r"(?:tcp:|udp:)?(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,16})?\])"
    r":\d{1,5}",
    re.ASCII,
)


class Nothing(Enum):
    """Why a lawful event claims nothing."""

    NO_USER = "it names no user"
    NO_FLOW = "its source is no address and port of a socket"
    STALE = "it is older than a minute"
    BAD_EMAIL = "its email is empty, too long, not UTF-8 or not printable"


class Event(NamedTuple):
    """A claim, and how many seconds ago the engine wrote it.

    ``age_s`` is up to a second too large, because ``ts`` has whole seconds; negative if the clock
    was set back since; None if the event does not say.
    """

    claim: Claim
    age_s: float | None


def read_event(body: bytes, now_s: float) -> Event | Nothing:
    """One event; ``now_s`` is the time since the epoch.

    Raises ValueError (one sentence) if the body is not an event.
    """
    try:
        event = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not JSON") from error
    if not isinstance(event, dict) or not {"email", "source"} <= event.keys():
        raise ValueError("the body is no object with email and source")
    email, source_text = _string(event, "email"), _string(event, "source")
    tag, local_text = _string(event, "inboundTag") or "", _string(event, "inboundLocal")
    age_s = _age_s(event, now_s)
    if email is None:
        return Nothing.NO_USER
    email_bytes = read_email(email)
    if email_bytes is None:
        return Nothing.BAD_EMAIL
    end = read_end(source_text)
    if end is None:
        return Nothing.NO_FLOW
    if age_s is not None and not abs(age_s) <= MAX_AGE_S:
        return Nothing.STALE
    local = our_end(end, read_end(local_text))
    claim = Claim(
        key_of(end, local),
        tag.encode("utf-8", "replace")[:_MAX_TAG_BYTES],
        email_bytes,
        False,
        b"",
        local=local,
        end=end,
    )
    return Event(claim, age_s)


def _age_s(event: dict[str, Any], now_s: float) -> float | None:
    stamp = event.get("ts", now_s)
    if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp < 1e12:
        raise ValueError("ts is not a time")
    return now_s - stamp if "ts" in event else None


def _string(event: dict[str, Any], key: str) -> str | None:
    value = event.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is neither a string nor null")
    return value


def read_email(text: str) -> bytes | None:
    """A user's name; None if it is empty, too long or not printable."""
    if not _EMAIL.fullmatch(text):
        return None
    email = text.encode("utf-8")
    return email if len(email) <= MAX_EMAIL_BYTES else None


def read_end(text: str | None) -> Endpoint | None:
    """One end of a flow; None if the text is not the address and port of a socket."""
    if text is None or not _END.fullmatch(text):
        return None
    return parse_source(text.encode())


def our_end(end: Endpoint, local: Endpoint | None) -> Endpoint | None:
    """``local``, unless it is a wildcard listener's own address, which is not that of a flow."""
    if local is None or len(local.address) != len(end.address) or not any(local.address):
        return None
    return local


def key_of(end: Endpoint, local: Endpoint | None) -> bytes:
    """What tells the flows of claims apart: what is known of both ends.

    The prefix of the client's says what the flow within the tunnel is, and nothing of this one.
    """
    return pack_end(end) if local is None else pack_end(end) + pack_end(local)
