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
from typing import Any

from .accesslog import Claim, Source, parse_source, spellings

#: An engine gives up a POST after 5 s; an older one lay in a queue, and its tuple may be reused.
MAX_AGE_S = 60.0
_MAX_TAG_BYTES = 512
_MAX_EMAIL_BYTES = 320

#: As in the access log: no control characters; nor C1, Unicode's line ends or half characters.
_EMAIL = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,320}")
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
    BAD_EMAIL = "its email is empty, too long or not printable"


def read_event(body: bytes, now_s: float) -> Claim | Nothing:
    """The claim of one event; ``now_s`` is the time since the epoch.

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
    stamp = event.get("ts", now_s)
    if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp < 1e12:
        raise ValueError("ts is not a time")
    if email is None:
        return Nothing.NO_USER
    email_bytes = _email(email)
    if email_bytes is None:
        return Nothing.BAD_EMAIL
    source = _end(source_text)
    if source is None:
        return Nothing.NO_FLOW
    if not abs(now_s - stamp) <= MAX_AGE_S:
        return Nothing.STALE
    bare, tcp, udp = spellings(source)
    local = _end(local_text)
    if local is not None and (len(local.address) != len(source.address) or not any(local.address)):
        local = None  # a wildcard listener's own address, not that of the flow
    return Claim(
        {"tcp": tcp, "udp": udp}.get((source_text or "")[:3], bare),
        tag.encode("utf-8", "replace")[:_MAX_TAG_BYTES],
        email_bytes,
        False,
        b"",
        local=None if local is None else spellings(local)[0],
    )


def _string(event: dict[str, Any], key: str) -> str | None:
    value = event.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is neither a string nor null")
    return value


def _email(text: str) -> bytes | None:
    if not _EMAIL.fullmatch(text):
        return None
    email = text.encode("utf-8")
    return email if len(email) <= _MAX_EMAIL_BYTES else None


def _end(text: str | None) -> Source | None:
    if text is None or not _END.fullmatch(text):
        return None
    return parse_source(text.encode())
