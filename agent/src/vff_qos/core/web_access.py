"""Who may ask the page: by which names of this host, and with which token."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable

#: How many bytes a token may have: fewer could be guessed.
TOKEN_BYTES = (16, 256)


def host_of(field: str) -> str:
    """Name or address in a Host field (RFC 9110, 7.2) without its port; empty if there is none."""
    host, colon, port = field.rpartition(":")
    if not colon or field.endswith("]"):
        host, port = field, ""
    if port and not (port.isascii() and port.isdigit()):
        return ""
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        return ""
    return host.strip("[]").rstrip(".").lower()


def is_asked_by_name(field: str, bound: str, names: Iterable[str]) -> bool:
    """Whether a Host field is one of ours.

    A browser that a stranger's name has led here (DNS rebinding) sends that name: only addresses
    of this host, ``localhost`` and the operator's ``names`` count.  ``bound`` is the address that
    the page listens at, empty for a unix socket; one that is no particular one (``0.0.0.0``) stands
    for every address, which no stranger can rename.
    """
    host = host_of(field)
    if host == "localhost" or host in names:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    if not bound:
        return False
    at = ipaddress.ip_address(bound)
    return at.is_unspecified or address == at


def has_token(authorization: str, token: bytes) -> bool:
    """Whether an Authorization field bears the token: as Bearer (RFC 6750), or as the password of
    Basic (RFC 7617), which browsers ask a person for; the name there does not matter."""
    scheme, _space, given = authorization.partition(" ")
    value = given.strip().encode(errors="surrogateescape")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value, token)
