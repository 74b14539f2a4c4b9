"""Events that a real engine posted, and what each of them claims."""

from __future__ import annotations

import json

from checkout import SAMPLES as SAMPLES_DIR
from vff_qos.core.claims.accesslog import Claim, parse_source

SAMPLES = (SAMPLES_DIR / "webhook.ndjson").read_bytes().splitlines()
#: When the samples were written.
THEN = 1_795_191_107.0

#: source, inbound tag, email and our end of each sample; None where nobody is named.
EXPECTED = [
    None
    if expected is None
    else (parse_source(expected[0]), *expected[1:3], parse_source(expected[3]))
    for expected in (
        (b"127.0.0.5:48625", b"vless-in", b"alice@x", b"127.0.0.1:21001"),
        (b"127.0.0.5:41497", b"vless-in", b"bob@x", b"127.0.0.1:21001"),
        (b"127.0.0.6:57517", b"vless-in", b"alice@x", b"127.0.0.1:21001"),
        (b"127.0.0.7:39461", b"vless-in", b"bob@x", b"127.0.0.1:21001"),
        (b"127.0.0.7:39461", b"vless-in", b"bob@x", b"127.0.0.1:21001"),
        (b"127.0.0.1:57738", b"socks-in", b"sockuser", b"127.0.0.1:21006"),
        None,
    )
]


def posted(**fields: object) -> bytes:
    event = {"email": "alice@x", "source": "192.0.2.5:1234", "inboundTag": "in",
             "inboundLocal": "198.51.100.1:443", "ts": int(THEN)}  # fmt: skip
    return json.dumps(event | fields).encode()


def ends(claim: Claim) -> tuple[object, ...]:
    """What a claim says, as `EXPECTED` has it."""
    return claim.end, claim.detour, claim.email, claim.local


def post(body: bytes, *lines: str) -> bytes:
    head = ["POST / HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body
