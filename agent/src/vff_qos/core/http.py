"""As much of an HTTP/1.1 server's parser as a source needs: POST, a path, a length, a body.

Strict on purpose: what RFC 9112 lets a server refuse is refused, and everything is bounded.
"""

from __future__ import annotations

import hmac
import json
import re
from typing import NamedTuple

MAX_HEAD_BYTES = 8_192
MAX_BODY_BYTES = 65_536

#: What a person reads in a log; nothing but the number matters to a program.
REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
}

_REQUEST = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,4096}) HTTP/1\.([01])\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):([\t -~\x80-\xff]*)\r\n")


class BadRequest(Exception):
    """The connection cannot go on: ``status`` is the answer, then it must be closed."""

    def __init__(self, status: int, problem: str) -> None:
        self.status, self.problem = status, problem
        super().__init__(problem)


class Request(NamedTuple):
    """A whole request."""

    body: bytes
    keep_alive: bool
    #: Path and query, as they were sent.
    target: bytes = b"/"


class _Head(NamedTuple):
    length: int
    keep_alive: bool
    target: bytes


class Parser:
    """Requests out of the bytes of one connection, however they are cut."""

    def __init__(self, authorization: bytes = b"") -> None:
        """``authorization`` is what that field of every request must be; empty: anything goes.

        Who lacks it is refused at the head: a stranger's body is not kept.
        """
        self._authorization = authorization
        self._buffer = bytearray()
        self._head: _Head | None = None

    @property
    def room(self) -> int:
        """How many bytes may be fed now, at least one."""
        return MAX_HEAD_BYTES + MAX_BODY_BYTES - len(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether no request has begun."""
        return not self._buffer and self._head is None

    def feed(self, data: bytes) -> list[Request]:
        """The requests that ``data`` (at most ``room`` bytes) completes.  Raises BadRequest."""
        seen = max(0, len(self._buffer) - 3)
        self._buffer += data
        requests: list[Request] = []
        while True:
            if self._head is None:
                end = self._buffer.find(b"\r\n\r\n", seen)
                if end > MAX_HEAD_BYTES or (end < 0 and len(self._buffer) > MAX_HEAD_BYTES):
                    raise BadRequest(431, f"a head of more than {MAX_HEAD_BYTES} bytes")
                if end < 0:
                    return requests
                self._head = _parse_head(bytes(self._buffer[: end + 2]), self._authorization)
                del self._buffer[: end + 4]
            length, keep_alive, target = self._head
            if len(self._buffer) < length:
                return requests
            requests.append(Request(bytes(self._buffer[:length]), keep_alive, target))
            del self._buffer[:length]
            self._head = None
            seen = 0


def _parse_head(head: bytes, authorization: bytes) -> _Head:
    """``head`` ends with the last field's CRLF."""
    line = _REQUEST.match(head)
    if line is None:
        raise BadRequest(400, "no HTTP/1.1 request line")
    fields: dict[bytes, bytes] = {}
    position = line.end()
    while position < len(head):
        field = _FIELD.match(head, position)
        if field is None:
            raise BadRequest(400, "a header line that is none")
        name = field[1].lower()
        if name in fields and name in (b"content-length", b"authorization", b"transfer-encoding"):
            raise BadRequest(400, f"{name.decode()} stands twice")
        fields[name] = field[2].strip(b" \t")
        position = field.end()
    if line[1] != b"POST":
        raise BadRequest(405, "a method other than POST")
    if authorization and not hmac.compare_digest(fields.get(b"authorization", b""), authorization):
        raise BadRequest(
            403, 'no or a wrong token (in its "headers": "Authorization": "Bearer ...")'
        )
    if b"transfer-encoding" in fields:
        raise BadRequest(501, "a transfer encoding")
    if b"expect" in fields:
        raise BadRequest(417, "an expectation")
    length = fields.get(b"content-length")
    if length is None:
        raise BadRequest(411, "no Content-Length")
    if not re.fullmatch(rb"[0-9]{1,9}", length):
        raise BadRequest(400, "a Content-Length that is no number")
    if int(length) > MAX_BODY_BYTES:
        raise BadRequest(413, f"a body of more than {MAX_BODY_BYTES} bytes")
    close = line[3] == b"0" or b"close" in fields.get(b"connection", b"").lower()
    return _Head(int(length), not close, line[2])


def answer(status: int, close: bool, sentence: str = "") -> bytes:
    """A response; ``sentence`` says in JSON what is wrong with the request."""
    body = json.dumps({"error": sentence}).encode() + b"\n" if sentence else b""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
    if status != 204:  # RFC 9110, 8.6: it has none
        lines.append(f"Content-Length: {len(body)}")
    if body:
        lines.append("Content-Type: application/json")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body
