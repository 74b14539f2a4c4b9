"""``vff-qos hooks --hash``: a secret as the users file may have it, without a trace in a shell."""

from __future__ import annotations

import getpass
import secrets
import sys

from ..core.hooks.credentials import MAX_SECRET_BYTES, hash_secret
from ..errors import Refused


def hash_of_input() -> str:
    """Of a line of standard input, asked for at a terminal.  Raises Refused."""
    given = getpass.getpass("secret: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if not given or len(given.encode()) > MAX_SECRET_BYTES:
        raise Refused(f"a secret has 1 to {MAX_SECRET_BYTES} bytes")
    return hash_secret(given, secrets.token_urlsafe(12))
