"""What is posted to ``/v1/flows``: from the body to claims.

One object, or an array of them (docs/ENGINES.md)::

    {"user": "alice@example.com", "source": "192.0.2.5:48625", "protocol": "udp",
     "local": "198.51.100.1:443"}

``source`` is the client's end and ``local`` ours, as the kernel sees them on the wire.  JSON keeps
every string in its place, and whoever posts is on this host and may: these claims are never
tainted.
"""

from __future__ import annotations

import json
from typing import Any

from .accesslog import TCP, UDP, Claim, Endpoint
from .email import MAX_EMAIL_BYTES
from .webhook_event import key_of, our_end, read_email, read_end

PATH = b"/v1/flows"
PROTOCOLS = {"tcp": TCP, "udp": UDP}
_NEEDED = ("user", "source", "protocol")
_KEYS = (*_NEEDED, "local")
#: Of a wrong value so much is shown.
_SHOWN = 60


def read_flows(body: bytes) -> list[Claim]:
    """The claims of one request, all of them or none.

    Raises ValueError (one sentence: which value, and what is allowed).
    """
    try:
        data = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not JSON") from error
    if isinstance(data, list):
        return [_claim(entry, f"[{index}]") for index, entry in enumerate(data)]
    return [_claim(data, "")]


def _claim(entry: Any, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise ValueError(f"{where or 'the body'} is no object with {', '.join(_NEEDED)}")
    for key in _NEEDED:
        if key not in entry:
            raise ValueError(f"{where}{key} is missing")
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{where}{_shown(key)} is none of {', '.join(_KEYS)}")
    protocol = entry["protocol"]
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise ValueError(f"{where}protocol: {_shown(protocol)} is neither 'tcp' nor 'udp'")
    user = entry["user"]
    email = read_email(user) if isinstance(user, str) else None
    if email is None:
        raise ValueError(
            f"{where}user: {_shown(user)} is not 1 to {MAX_EMAIL_BYTES} bytes of printable text"
        )
    end = _end(entry["source"], f"{where}source")
    local = entry.get("local")
    ours = None if local is None else our_end(end, _end(local, f"{where}local"))
    number = PROTOCOLS[protocol]
    return Claim(
        key_of(end, ours), b"", email, False, b"", local=ours, end=end, protocol=number
    )  # fmt: skip


def _end(value: object, where: str) -> Endpoint:
    found = None
    if isinstance(value, str) and not value.startswith(("tcp:", "udp:")):
        found = read_end(value)
    if found is None:
        raise ValueError(
            f"{where}: {_shown(value)} is no address and port such as '192.0.2.5:443' or "
            "'[2001:db8::5]:443'"
        )
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
