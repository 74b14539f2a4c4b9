"""The grammar of Xray's access log: from bytes to claims.

A claim says "this flow is this user's".  The text between is partly chosen by strangers: an
engine prints a refused domain raw, newlines included, and thus whole forged lines.  So the
grammar is anchored at both ends, every field is bounded, and what follows text that a stranger
may have written is *tainted* (the caller gives tainted claims less weight).

One line, as written by Xray 1.5.5 to 26.10 (common/log/access.go)::

    2026/11/20 15:48:00.448421 from tcp:[2001:db8::7]:5555 accepted udp:example.com:53
        [in-tag >> out-tag] email: alice@x
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from itertools import accumulate, repeat
from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple

#: How far a stranger's text may reach: 2,048 bytes of name (Hysteria) and what stands before it.
TAINT_BYTES = 2_304
#: A lawful line is under 3 KiB: 2,048 bytes of domain, tags and email.
MAX_LINE_BYTES = 4_096

_MAPPED = b"\0" * 10 + b"\xff\xff"
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP

# An empty alternative, (?:a|), is a quarter cheaper than (?:a)? on lines of this kind.
_STAMP = rb"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"
_FRACTION = rb"(?:\.\d{6}|)"
_TIME = _STAMP + _FRACTION
_SOURCE = (
    rb"(?:tcp:|udp:|)(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[0-9A-Fa-f:.]{2,45}"
    rb"(?:%[\w.-]{1,16})?\]):\d{1,5}"
)
_HEAD = rb"^(" + _STAMP + rb")" + _FRACTION + rb" (?:from |)(" + _SOURCE + rb") "
_HOST = rb"(?:[A-Za-z0-9._-]{1,2048}|\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,16})?\])"

#: A whole line that claims a flow for a user.
_CLAIM = re.compile(
    _HEAD + rb"accepted (?:tcp:|udp:|unix:|)" + _HOST + rb":\d{1,5} "
    # up to the first "] email: "; brackets within tags are the operator's, and rare
    rb"(?:\[([ -\x5c^-~]{1,512}|[ -\x5c^-~]{1,512}(?:\](?! email: )[ -\x5c^-~]{0,512}){1,8})\] |)"
    rb"email: ([^\x00-\x1f\x7f]{1,320})$",
    re.MULTILINE,
)
_ARROW = re.compile(rb" (?:->|>>|==>) ")

#: Lines that claim nothing and carry no stranger's text beyond what their bounds allow.
_HARMLESS = re.compile(
    rb"^" + _TIME + rb" (?:from )?"
    rb"(?:"
    # no user: SOCKS, HTTP, dokodemo, API; a URL may hold anything but spaces and control bytes
    rb"(?:[!-~]{1,128}) accepted (?:[!-~]{0,2400})?(?: \[[ -~]{1,512}\])?"
    # an address that names no flow: unix sockets and the engine's own DNS
    rb"|(?:@[!-~]{0,108}|unix:[!-~]{0,108}|DNS|0\.0\.0\.0:0) accepted [!-~]{0,2400}"
    rb"(?: \[[ -~]{1,512}\])?(?: email: [^\x00-\x1f\x7f]{1,320})?"
    rb"|(?:[!-~]{1,128}) rejected  ?[ -~]{0,512}"
    rb")$"
)
#: What an engine says at its start on the stream of its access log, wherever its error log goes:
#: version, config files and what is deprecated there.  An operator's text at most.
_START = re.compile(
    rb"^(?:Xray \d[ -~]{0,256}|A unified platform for anti-censorship\.|" + _TIME + rb" (?:"
    rb"Using conf(?:ig|dir) from [ -~]{1,2048}|Using default config: [ -~]{1,2048}|"
    rb"\[(?:Info|Warning)\] (?:infra/conf[a-z/]{0,64}: |common/errors: Th(?:e|is) feature )"
    rb"[ -~]{1,2048}))$"
)
_STRANGERS_TEXT = b"invalid domain name:"
#: The trustworthy beginning of an accepted line whose rest does not parse.
_ACCEPTED_HEAD = re.compile(_HEAD + rb"accepted ")
#: Who a line is about.
_ANY_HEAD = re.compile(rb"^" + _TIME + rb" (?:from |)(" + _SOURCE + rb") ")
_MASKED = re.compile(
    rb"^" + _TIME + rb" (?:from )?(?:tcp:|udp:)?(?:\d+\.[\d.*]*\*|\[[0-9a-f:.]*/\d+\]|\[Masked)"
)
#: Levels of the error log, which must not share a stream with the access log.
_ERROR_LOG = re.compile(rb"^" + _TIME + rb" \[(?:Debug|Info|Warning|Error)\] ")


class Claim(NamedTuple):
    """One line's word on a flow.

    ``source`` is the text before `` accepted`` (``tcp:1.2.3.4:5``; see ``parse_source``),
    ``detour`` the text in brackets, empty if there is none.  ``email`` is empty when the line
    names no user, and None when it begins as an accepted one but does not parse to its end:
    somebody moved bytes there, and the flow is real.
    ``tainted`` is empty when no stranger's text can have reached the line; otherwise it says who
    may have written it: the source of the line that bears that text, or ``?``.
    ``position`` counts the stream's bytes up to the line.  ``local`` is our end of the flow
    (``192.0.2.1:443``) where the source of claims knows it; no access log does.
    """

    source: bytes
    detour: bytes
    email: bytes | None
    tainted: bytes
    time: bytes
    position: int = 0
    local: bytes | None = None


#: Who has written the text that taints: a line that says nothing of it, or a stream that was cut.
NOBODY_KNOWS = b"?"

#: Half the cost of Claim(...).
_NEW = tuple.__new__


class Source(NamedTuple):
    """Where a flow comes from: 0, TCP or UDP as the line's prefix says; packed address; port."""

    proto: int
    address: bytes
    port: int


@dataclass
class Counters:
    """What was seen, for ``status`` and the journal."""

    lines: int = 0
    claims: int = 0
    harmless: int = 0
    unparsed: int = 0
    strangers: int = 0
    masked: int = 0
    error_log: int = 0


def parse_source(text: bytes) -> Source | None:
    """A claim's source; None if it names no flow (port 0 comes from a header, not a socket).

    IPv4-mapped IPv6 becomes IPv4, as conntrack sees it.
    """
    proto = 0
    if text.startswith((b"tcp:", b"udp:")):
        proto = TCP if text.startswith(b"tcp:") else UDP
        text = text[4:]
    host, _colon, port_text = text.rpartition(b":")
    port = int(port_text)
    try:
        if host.startswith(b"["):
            address = socket.inet_pton(socket.AF_INET6, host[1:-1].partition(b"%")[0].decode())
            if address.startswith(b"\0" * 10 + b"\xff\xff"):
                address = address[12:]
        else:
            address = socket.inet_pton(socket.AF_INET, host.decode())
    except OSError:
        return None
    return Source(proto, address, port) if 0 < port < 65_536 else None


def client_end(claim: Claim) -> bytes | None:
    """The packed address and port of a claim's client; None if it names no flow (port 0).

    IPv4-mapped IPv6 becomes IPv4, as conntrack sees it.
    """
    text = claim[0].decode()
    if text[0] in "tu":  # tcp:, udp:
        text = text[4:]
    host, _colon, port_text = text.rpartition(":")
    try:
        if host[0] == "[":
            address = inet_pton(AF_INET6, host[1:-1].partition("%")[0])
            if address.startswith(_MAPPED):
                address = address[12:]
        else:
            address = inet_pton(AF_INET, host)
    except OSError:
        return None
    port = int(port_text)
    return address + port.to_bytes(2, "big") if 0 < port < 65_536 else None


def local_end(claim: Claim) -> Source | None:
    """Our end of the flow, where the source of claims knows it."""
    return None if claim.local is None else parse_source(claim.local)


def taint_author(claim: Claim) -> bytes | None:
    """The packed address from which the text came that taints a claim; None if nobody knows."""
    author = None if claim.tainted in (b"", NOBODY_KNOWS) else parse_source(claim.tainted)
    return None if author is None else author.address


def spellings_of(client: bytes) -> tuple[bytes, bytes, bytes]:
    """How an engine writes a client's packed end: bare, ``tcp:`` and ``udp:``."""
    return spellings(Source(0, client[:-2], int.from_bytes(client[-2:], "big")))


def spellings(source: Source) -> tuple[bytes, bytes, bytes]:
    """How an engine writes a source: bare, ``tcp:`` and ``udp:``.  A forger may write others."""
    if len(source.address) == 4:
        host = socket.inet_ntop(socket.AF_INET, source.address)
    else:
        host = f"[{socket.inet_ntop(socket.AF_INET6, source.address)}]"
    text = f"{host}:{source.port}".encode()
    return text, b"tcp:" + text, b"udp:" + text


def inbound_tag(detour: bytes) -> bytes:
    """The inbound's tag in ``in-tag -> out-tag``; empty if there is none."""
    return _ARROW.split(detour, 1)[0]


class Scanner:
    """Claims out of blocks of whole lines; remembers across blocks how far taint reaches."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._taint_left = 0
        self._author = NOBODY_KNOWS
        self._scanned = 0

    def taint(self, length: int = TAINT_BYTES) -> None:
        """Distrust what follows: the stream was cut, or a stranger's text went by."""
        self._taint_left = length
        self._author = NOBODY_KNOWS

    @property
    def taint_left(self) -> int:
        """How many of the next bytes will be distrusted; a checkpoint keeps it."""
        return self._taint_left

    def scan(self, block: bytes) -> list[Claim]:
        """Claims of ``block``, which must end with a newline, in the order of the lines."""
        claims = None if self._taint_left else self._scan_plain(block)
        if claims is None:
            claims = self._scan_mixed(block)
        self._scanned += len(block)
        return claims

    def _scan_plain(self, block: bytes) -> list[Claim] | None:
        """The usual case, without a step of Python per line; None if it is not given.

        A match is one whole line, so that as many matches as lines leave nothing between them.
        """
        lines = block.splitlines(keepends=True)
        if not lines or block.count(b" email: ") != len(lines):
            return None
        found = _CLAIM.findall(block)
        if len(found) != len(lines):
            return None
        times, sources, detours, emails = zip(*found, strict=True)
        starts = accumulate(map(len, lines), initial=self._scanned)
        fields = zip(sources, detours, emails, repeat(b""), times, starts, repeat(None))
        self.counters.lines += len(lines)
        self.counters.claims += len(lines)
        return list(map(_NEW, repeat(Claim), fields))

    def _scan_mixed(self, block: bytes) -> list[Claim]:
        """Claims and other lines, taint and all."""
        claims: list[Claim] = []
        counters = self.counters
        position = whole = 0
        scanned = self._scanned
        taint_end = self._taint_left
        for found in _CLAIM.finditer(block):
            start, end = found.span()
            if start != position:
                taint_end = self._others(block, position, start, taint_end, claims)
            position = end + 1
            time, source, detour, email = found.groups(b"")
            tainted = self._author if start < taint_end else b""
            fields = (source, detour, email, tainted, time, scanned + start, None)
            claims.append(_NEW(Claim, fields))
            whole += 1
        counters.lines += whole
        counters.claims += whole
        if position < len(block):
            taint_end = self._others(block, position, len(block), taint_end, claims)
        self._taint_left = max(0, taint_end - len(block))
        return claims

    def _others(
        self, block: bytes, start: int, end: int, taint_end: int, claims: list[Claim]
    ) -> int:
        """Lines between two claims; returns how far taint reaches now."""
        counters = self.counters
        for line in block[start:end].split(b"\n")[:-1]:
            counters.lines += 1
            strangers = line.find(_STRANGERS_TEXT)
            tainted = self._author if start < taint_end else b""
            if (
                strangers < 0
                and len(line) <= MAX_LINE_BYTES
                and (_HARMLESS.match(line) or _START.match(line))
            ):
                counters.harmless += 1
                counters.masked += bool(_MASKED.match(line))
                email: bytes | None = b""
            else:
                counters.unparsed += strangers < 0
                counters.strangers += strangers >= 0
                counters.masked += bool(_MASKED.match(line))
                counters.error_log += bool(_ERROR_LOG.match(line))
                taint_end = max(taint_end, start + max(strangers, 0) + TAINT_BYTES)
                if not tainted:
                    # Within reach of an earlier text, that one's author may have written this, too.
                    self._author = found[1] if (found := _ANY_HEAD.match(line)) else NOBODY_KNOWS
                email = None
            if head := _ACCEPTED_HEAD.match(line):
                position = self._scanned + start
                claims.append(Claim(head[2], b"", email, tainted, head[1], position))
            start += len(line) + 1
        return taint_end
