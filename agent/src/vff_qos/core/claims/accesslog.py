"""The grammar of Xray's access log: from bytes to claims.

A claim says "this flow is this user's".  The text between is partly chosen by strangers: an
engine prints a refused domain raw, newlines included, and thus whole forged lines.  So the
grammar is anchored at both ends, every field is bounded, and what a stranger may have written is
*tainted* (the caller gives tainted claims less weight).

One line, as written by Xray 1.5.5 to 26.10 (common/log/access.go)::

    2026/11/20 15:48:00.448421 from tcp:[2001:db8::7]:5555 accepted udp:example.com:53
        [in-tag >> out-tag] email: alice@x

Tags, paths and emails are the operator's: any bytes but control characters.

How far a stranger's text reaches, seen in Xray 26.7 and 26.10 or read in the source:

| text | printed raw, newlines included | bytes |
|---|---|---|
| a refused domain (Trojan, Shadowsocks, SOCKS5), a name in a DNS question | yes | 255 |
| the reason in a WebSocket's close frame (VLESS, VMess, Trojan; no account needed) | yes | 123 |
| the reason in a QUIC close (XHTTP over h3) | yes | one packet |
| the name in an accepted line of SS-2022, Hysteria (2,048), SOCKS4a | yes | 8,191 |
| an URL (HTTP inbound) | no control characters, no spaces | any |
| a path in the error log, where that shares the stream (no account needed) | yes | 12,288 |
| a name in the error log, there printed twice | yes | 2 x 8,191 |

Longer than 400 lines: one grammar, and the table above holds for all of it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, count, repeat
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, NamedTuple

from .email import MAX_EMAIL_BYTES

#: A domain has one byte for its length.
NAME_BYTES = 255
#: A close frame's reason, and what may follow it: another message and a refused domain.
CLOSE_BYTES = 512
#: Other reasons of a rejection: at most what fits into a QUIC packet.
REASON_BYTES = 2_048
#: From the start of an accepted line to the end of a name in it that nobody checked.
FREE_TEXT_BYTES = 8_320
#: Positions of a claim from here on are another stream's: see `begin_stream`.
STREAM_POSITIONS = 1 << 48
#: The longest message of any kind.
MESSAGE_BYTES = 16_896
#: Text that is more than this long for one line is not looked at.
MAX_LINE_BYTES = 65_536
#: How many strangers are told of at once.
MAX_STRANGERS = 4_096
#: How many addresses may be the author of a text; with more, nobody knows who it is.
MAX_AUTHORS = 8

#: No byte that comes is distrusted.
_NONE = -1

_MAPPED = b"\0" * 10 + b"\xff\xff"
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP

# An empty alternative, (?:a|), is a quarter cheaper than (?:a)? on lines of this kind.
_STAMP = rb"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d{6}|)"
_IPV6 = rb"\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,16})?\]"
_ADDRESS = rb"(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|" + _IPV6 + rb")"
_SOURCE = rb"(?:tcp:|udp:|)" + _ADDRESS + rb":[1-9]\d{0,4}"
_HEAD = rb"^(" + _STAMP + rb") (?:from |)(" + _SOURCE + rb") "
#: What an operator wrote: no control characters.  A negated set takes a quarter longer.
_TEXT = rb"[ -~\x80-\xff]"
_TAG = rb"[ -\x5c^-~\x80-\xff]"
_EMAIL = _TEXT + rb"{1,%d}" % MAX_EMAIL_BYTES

#: A whole line that claims a flow for a user.
_CLAIM = re.compile(
    _HEAD
    + rb"accepted (?:tcp:|udp:|unix:|)(?:[A-Za-z0-9._-]{1,2048}|" + _IPV6 + rb"):\d{1,5} "
    # up to the first "] email: "; brackets within tags are the operator's, and rare
    + rb"(?:\[(" + _TAG + rb"{1,512}|" + _TAG + rb"{1,512}(?:\](?! email: )" + _TAG
    + rb"{0,512}){1,8})\] |)email: (" + _EMAIL + rb")$",
    re.MULTILINE,
)  # fmt: skip
#: No second line is within a field so short.
_SHORT = 32
_ARROW = re.compile(rb" (?:->|>>|==>) ")

_ANY_SOURCE = rb"(?:from |)([!-~]{1,128})"
#: Where an accepted line goes: what was asked for, checked or escaped by the engine.
_TARGET = (
    rb"(?:(?:tcp:|udp:|)(?:[A-Za-z0-9._-]{1,8192}|" + _IPV6 + rb"):\d{1,5}"
    rb"|(?:[a-z][a-z0-9+.-]{0,31}:|)//[!-~\x80-\xff]{1,65536}"
    rb"|unix:[!-~\x80-\xff]{1,108})"
)  # fmt: skip
#: Part of a reason that the engine wrote itself: "proxy/trojan: not a valid user".
_WORDS = rb"[A-Za-z\x80-\xff][A-Za-z0-9 ,.'()_\x80-\xff-]{0,127}"
_PART = rb"(?:[a-z0-9_]{1,32}(?:/[a-z0-9_]{1,32}){0,6}: ){1,2}" + _WORDS
#: The part where a reason ends, if it is none of the others.
_CAUSE = (
    rb"(?:EOF|unexpected EOF|i/o timeout|context canceled|context deadline exceeded"
    rb"|use of closed network connection|io: read/write on closed pipe"
    rb"|(?:read|write) (?:tcp|udp)[46]? [0-9A-Fa-f:.\[\]%-]{1,64}->[0-9A-Fa-f:.\[\]%-]{1,64}: "
    rb"[a-z /]{1,48}(?:: [a-z ]{1,48})?"
    rb"|[a-z0-9_/]{1,64}: unknown [A-Za-z ]{1,32}: [0-9A-Z_]{1,32}"
    rb"|[a-z0-9_/]{1,64}: unknown command \d{1,3}"
    rb"|[a-z0-9_/]{1,64}: invalid request user id: [0-9a-f-]{36}"
    rb"|[a-z0-9_/]{1,64}: len\(bs\) <= \d{1,3}"
    rb"|proto:\xc2\xa0[a-z -]{1,64}"  # protobuf chooses at random between this space and the other
    rb"|(?:remote|local) error: tls: [a-z0-9 ]{1,64}"
    rb"|rpc error: code = [A-Za-z]{1,32} desc = (?:EOF|context canceled|client disconnected)"
    rb"|[a-z0-9]{1,32}: message authentication failed)"
)
#: No text fits in two ways, so that a mismatch costs no more than a match.
_REASON = rb"(?:" + _PART + rb"|" + _CAUSE + rb")"
_REASONS = rb"(?:" + _REASON + rb" > ){0,16}"

#: Lines that claim nothing and hold no text that a stranger could have put a newline into.
_HARMLESS = (
    rb"^" + _STAMP + rb" "
    rb"(?:"
    # an address that names no flow: unix sockets, the engine's own DNS, one out of a header
    rb"(?:from |)(?:((?:@|unix:)" + _TEXT + rb"{0,108})|DNS|(?:tcp:|udp:|)(" + _ADDRESS
    + rb":0{1,5})) accepted " + _TARGET + rb"(?: \[" + _TEXT + rb"{1,512}\])?(?: email: "
    + _EMAIL + rb")?"
    # no user: SOCKS, HTTP, dokodemo, API
    rb"|" + _ANY_SOURCE + rb" accepted " + _TARGET + rb"(?: \[" + _TEXT + rb"{1,512}\])?"
    rb"|" + _ANY_SOURCE + rb" rejected  ?" + _REASONS + rb"(?:" + _REASON + rb"|)"
    rb")$"
)  # fmt: skip
#: What an engine says at its start on the stream of its access log, wherever its error log goes:
#: version, config files and what is deprecated there.  An operator's text at most.
_START = re.compile(
    rb"^(?:Xray \d[ -~]{0,256}|A unified platform for anti-censorship\.|" + _STAMP + rb" (?:"
    rb"Using conf(?:ig|dir) from " + _TEXT + rb"{1,2048}"
    rb"|Using default config: " + _TEXT + rb"{1,2048}"
    rb"|(\[Warning\] core: Xray [0-9.]{1,32} started)"  # of the error log
    rb"|\[(?:Info|Warning)\] (?:infra/conf[a-z/]{0,64}: |common/errors: Th(?:e|is) feature )"
    + _TEXT + rb"{1,2048}))$"
)  # fmt: skip
#: Up to where a stranger's text begins, by its kind.  Anchored: a stranger who imitates one of
#: them within longer text shortens nothing.
_RAW = (
    rb"^" + _STAMP + rb" (?:"
    + _ANY_SOURCE + rb" rejected  ?(?:" + _REASONS + rb"(?:"
    rb"(?P<name>(?:[a-z0-9_]{1,32}/){1,6}[a-z0-9_]{1,32}: invalid domain name: )"
    rb"|(?P<close>websocket: close \d{3,5}(?: \([a-z ]{1,40}\))?: ))|)"
    rb"|(?P<dns>[A-Za-z0-9+]{1,16}(?::|//)[!-~]{1,128} (?:got answer|cache [A-Z]{1,16}): )"
    rb")"
)  # fmt: skip
_REACH = {"name": NAME_BYTES, "close": CLOSE_BYTES, "dns": NAME_BYTES}
#: An accepted line up to what was asked for.
_ACCEPTED = re.compile(rb"^(" + _STAMP + rb") (?:from |)([!-~]{1,128}) accepted ")
#: The same where it names a flow.
_SOURCES = re.compile(_SOURCE)
_ACCEPTED_FLOW = re.compile(_HEAD + rb"accepted ")
_STAMPED = re.compile(_STAMP + rb" ")
_MASKED = re.compile(
    rb"^" + _STAMP + rb" (?:from )?(?:tcp:|udp:)?(?:\d+\.[\d.*]*\*|\[[0-9a-f:.]*/\d+\]|\[Masked)"
)
#: Levels of the error log, which must not share a stream with the access log.
_ERROR_LOG = re.compile(rb"^" + _STAMP + rb" \[(?:Debug|Info|Warning|Error)\] ")
#: Within a line, where another one begins: a full disk cut the former.
_NEXT = re.compile(rb"(?=(?<!^)" + _STAMP + rb" (?:from |)[!-~]{1,128} (?:accepted|rejected) )")
#: What is left of a line that was cut: nothing here was a stranger's, unless names are unchecked.
_TORN = (
    rb"(?:\d[\d/ :.]{0,26}|" + _STAMP + rb" (?:from |)(?:[!-~]{0,128}|[!-~]{1,128} (?:[a-z]{0,8}"
    rb"|accepted (?:(?:tcp:|udp:|)[A-Za-z0-9._:-]{0,2048}/?"
    rb"|(?:tcp:|udp:|)\[[0-9A-Fa-f:.%]{0,64}(?:\](?::\d{0,5})?)?"
    rb"|(?:[a-z][a-z0-9+.-]{0,31}:|)//[!-~\x80-\xff]{0,65536}"
    rb"|" + _TARGET + rb" (?:\[" + _TEXT + rb"{0,1024}|e[mail]{0,4}|email: ?" + _TEXT
    + rb"{0,%d}|))" % MAX_EMAIL_BYTES
    + rb"|rejected ? ?" + _REASONS + rb"(?:[a-z0-9_/]{1,64}:? ?|[A-Za-z ]{0,24}|"
    + _REASON + rb" ?>? ?))))"
)  # fmt: skip


#: The author of text that taints: no line says who, or the stream was cut.
NOBODY_KNOWS = b"?"
#: The source of a line that names no flow: a unix socket, an address out of a header.
NO_SOURCE = b"0.0.0.0:0"
#: The author of a line that lacks its end: a full disk.
TORN = b"!"


class Endpoint(NamedTuple):
    """One end of a flow: 0, TCP or UDP as the text's prefix says; packed address; port."""

    proto: int
    address: bytes
    port: int


_streams = count()


def begin_stream() -> int:
    """The first position of a stream of its own: a file's, a process's, and whatever is read again.

    No two of this run of the agent are the same.
    """
    return next(_streams) * STREAM_POSITIONS


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    """Takes some ms, which no mark waits for at a start: the usual line needs none of these."""
    return re.compile(pattern)


class Claim(NamedTuple):
    """One line's word on a flow.

    ``source`` is the text before `` accepted`` (``tcp:1.2.3.4:5``; see ``parse_source``); where
    the source of claims is no text, it is a key of the flow's known ends, and ``end`` the client's;
    `NO_SOURCE` if the line names no flow.
    ``detour`` the text in brackets, empty if there is none.  ``email`` is empty when the line
    names no user, and None when it begins as an accepted one but does not parse to its end:
    somebody moved bytes there, and the flow is real.
    ``tainted``: a stranger's text reaches the line; ``author`` is then the source of the line that
    bears that text, several with spaces between if one stands in reach of another, or
    `NOBODY_KNOWS`; `TORN` of a line that lacks its end.  ``time`` is the line's stamp (see
    ``stamp.written``).
    ``position`` counts the stream's bytes up to the line; no two streams of a source share a
    position.  ``local`` is our end of the flow where the source of claims knows it; no access log
    does.  ``protocol`` is the flow's own (IPPROTO_TCP or UDP), 0 where the source does not know it:
    such a claim means no other one, and may come before the flow.
    """

    source: bytes
    detour: bytes
    email: bytes | None
    tainted: bool
    time: bytes
    position: int = 0
    local: Endpoint | None = None
    author: bytes = NOBODY_KNOWS
    end: Endpoint | None = None
    protocol: int = 0


#: Half the cost of Claim(...).
_NEW = tuple.__new__


@dataclass
class Counters:
    """What was seen, for ``status`` and the journal.

    ``strangers`` are lines with a stranger's raw text, of which ``strangers_untold`` were too many
    to be told of one by one.  ``no_port`` are accepted lines whose source has port 0: the address
    comes from a header (X-Forwarded-For), so there is no flow to limit.  ``torn`` are lines that
    lack their end, because the disk was full.
    """

    lines: int = 0
    claims: int = 0
    harmless: int = 0
    unparsed: int = 0
    strangers: int = 0
    strangers_untold: int = 0
    masked: int = 0
    error_log: int = 0
    no_port: int = 0
    torn: int = 0


def parse_source(text: bytes) -> Endpoint | None:
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
    return Endpoint(proto, address, port) if 0 < port < 65_536 else None


def client_ends(claims: Iterable[Claim]) -> list[bytes | None]:
    """The packed address and port of each claim's client; None if it names no flow (port 0).

    IPv4-mapped IPv6 becomes IPv4, as conntrack sees it.  One call for all: thousands come at once.
    """
    ends: list[bytes | None] = []
    add = ends.append
    for claim in claims:
        if claim[8] is not None:
            add(pack_end(claim[8]))
            continue
        host, _colon, port_text = claim[0].decode().rpartition(":")
        if host[0] in "tu":  # tcp:, udp:
            host = host[4:]
        try:
            if host[0] == "[":
                address = inet_pton(AF_INET6, host[1:-1].partition("%")[0])
                if address.startswith(_MAPPED):
                    address = address[12:]
            else:
                address = inet_pton(AF_INET, host)
        except OSError:
            add(None)
            continue
        port = int(port_text)
        add(address + port.to_bytes(2, "big") if 0 < port < 65_536 else None)
    return ends


def pack_end(end: Endpoint) -> bytes:
    """Address and port of an end as one key."""
    return end.address + end.port.to_bytes(2, "big")


def taint_authors(claim: Claim) -> list[bytes]:
    """Packed ends of who may have written the text that taints a claim; empty: anybody.

    The first is that of a line which nothing else has tainted, so that it is true.  The others
    may be forged themselves: they count if such a flow is known.
    """
    if not claim.tainted or claim.author == NOBODY_KNOWS:
        return []
    authors = [_SOURCES.fullmatch(text) for text in claim.author.split(b" ")]
    sources = [found and parse_source(found[0]) for found in authors]
    if not sources[0]:
        return []  # who is not at an address may be anywhere
    return [source.address + source.port.to_bytes(2, "big") for source in sources if source]


def spellings_of(client: bytes) -> tuple[bytes, bytes, bytes]:
    """How an engine writes a client's packed end: bare, ``tcp:`` and ``udp:``."""
    return spellings(Endpoint(0, client[:-2], int.from_bytes(client[-2:], "big")))


def spellings(source: Endpoint) -> tuple[bytes, bytes, bytes]:
    """How an engine writes a source: bare, ``tcp:`` and ``udp:``.  A forger may write others."""
    if len(source.address) == 4:
        host = socket.inet_ntop(socket.AF_INET, source.address)
    else:
        host = f"[{socket.inet_ntop(socket.AF_INET6, source.address)}]"
    text = f"{host}:{source.port}".encode()
    return text, b"tcp:" + text, b"udp:" + text


def is_start(line: bytes) -> bool:
    """Whether an engine says this when it starts, before anybody can have it write a text."""
    return bool(_START.match(line))


def inbound_tag(detour: bytes) -> bytes:
    """The inbound's tag in ``in-tag -> out-tag``; empty if there is none."""
    return _ARROW.split(detour, 1)[0]


class Stranger(NamedTuple):
    """The source of a line with a stranger's raw text, and whether that line is tainted itself."""

    source: bytes
    tainted: bool


class Scanner:
    """Claims out of blocks of whole lines; remembers across blocks how far taint reaches."""

    #: What the engine's configuration must hold where the log is a file, and where the journal.
    needs_in_file, needs_in_journal = '"log": {"access": "%s"}', '"log": {"access": ""}'

    def __init__(self, counters: Counters | None = None, position: int = 0) -> None:
        """``counters`` may be shared, ``position`` is where the stream's bytes count from."""
        self.counters = Counters() if counters is None else counters
        #: Who sent strangers' text; the caller takes them away.
        self.strangers: list[Stranger] = []
        #: Whether messages of an error log, and answers of the engine's DNS, have been seen here.
        #: Else what looks like one within a stranger's text is of that text and its author.
        self.mixed = self.dns_log = False
        # How many of the next bytes; 0: a stranger's text has ended exactly here.
        self._taint_left = _NONE
        # Who may have had the text written that taints what follows.
        self._author = NOBODY_KNOWS
        self._scanned = position
        self._plain = True

    def taint(self, length: int = MESSAGE_BYTES) -> None:
        """Distrust the next bytes at least: a stranger's text may have gone by."""
        self._taint_left = max(self._taint_left, length)
        self._author = NOBODY_KNOWS

    def begin_within(self) -> None:
        """The stream's beginning is not seen: it may hold anything, and have held it already."""
        self.taint()
        self.mixed = self.dns_log = True

    def follow(self, before: Scanner) -> None:
        """The stream goes on from where another one ended, in the middle of a text perhaps."""
        self.taint(before._taint_left)
        self.mixed |= before.mixed
        self.dns_log |= before.dns_log

    def save(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON."""
        return {"taint": self.taint_left, "mixed": self.mixed, "dns_log": self.dns_log}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on as ``save`` said; as with an unseen beginning if it did not."""
        self.taint(int(saved.get("taint", MESSAGE_BYTES)) or _NONE)
        self.mixed = bool(saved.get("mixed", True))
        self.dns_log = bool(saved.get("dns_log", True))

    @property
    def taint_left(self) -> int:
        """How many of the next bytes will be distrusted; a checkpoint keeps it."""
        return max(0, self._taint_left)

    def scan(self, block: bytes) -> list[Claim]:
        """Claims of ``block``, which must end with a newline, in the order of the lines."""
        claims = None if self._taint_left > 0 else self._scan_plain(block)
        if claims is None:
            claims = self._scan_mixed(block)
        self._scanned += len(block)
        return claims

    def _scan_plain(self, block: bytes) -> list[Claim] | None:
        """The usual case, without a step of Python per line; None if it is not given.

        A match is one whole line, so that as many matches as lines leave nothing between them.
        Two lines in one (the first was cut within its tag) would match, but not be counted alike.
        """
        lines = block.splitlines(keepends=True)
        if not lines or block.count(b" accepted ") != len(lines):
            return None
        # Where lines without a user are frequent, a look is cheaper than a try.
        if not self._plain and block.count(b" email: ") != len(lines):
            return None
        found = _CLAIM.findall(block)
        self._plain = len(found) == len(lines)
        if not self._plain:
            return None
        times, sources, detours, emails = zip(*found, strict=True)
        starts = accumulate(map(len, lines), initial=self._scanned)
        none, author = repeat(None), repeat(NOBODY_KNOWS)
        never = repeat(False)
        fields = zip(
            sources, detours, emails, never, times, starts, none, author, none, repeat(0)
        )  # fmt: skip
        self.counters.lines += len(lines)
        self.counters.claims += len(lines)
        self._taint_left = _NONE
        return list(map(_NEW, repeat(Claim), fields))

    def _scan_mixed(self, block: bytes) -> list[Claim]:
        """Claims and other lines, taint and all."""
        claims: list[Claim] = []
        position = whole = 0
        scanned = self._scanned
        taint_end = self._taint_left
        for found in _CLAIM.finditer(block):
            start, end = found.span()
            time, source, detour, email = found.groups(b"")
            if (len(detour) > _SHORT and b" accepted " in detour) or (
                len(email) > _SHORT and b" accepted " in email
            ):
                continue  # two lines in one
            if start != position:
                taint_end = self._others(block, position, start, taint_end, claims)
            position = end + 1
            tainted = start < taint_end
            author = self._author if tainted else NOBODY_KNOWS
            start += scanned
            fields = (source, detour, email, tainted, time, start, None, author, None, 0)
            claims.append(_NEW(Claim, fields))
            whole += 1
        self.counters.lines += whole
        self.counters.claims += whole
        if position < len(block):
            taint_end = self._others(block, position, len(block), taint_end, claims)
        self._taint_left = max(_NONE, taint_end - len(block))
        return claims

    def _others(
        self, block: bytes, start: int, end: int, taint_end: int, claims: list[Claim]
    ) -> int:
        """Lines between two claims; returns how far taint reaches now."""
        for line in block[start:end].split(b"\n")[:-1]:
            self.counters.lines += 1
            taint_end = self._other(line, start, taint_end, claims)
            start += len(line) + 1
        return taint_end

    def _other(self, line: bytes, start: int, taint_end: int, claims: list[Claim]) -> int:
        """One line that is not plainly a claim, at ``start``; returns how far taint reaches."""
        counters = self.counters
        if not line and start == taint_end:
            # The engine's newline after a text of full length that ends with one.
            counters.harmless += 1
            return taint_end
        tainted = start < taint_end
        counters.masked += bool(_MASKED.match(line))
        if len(line) <= MAX_LINE_BYTES:
            if found := _compiled(_HARMLESS).match(line):
                counters.harmless += 1
                counters.no_port += found[2] is not None
                self._accepted(line, start, b"", tainted, claims)
                if found[1] is not None or found[2] is not None:
                    # It says nothing of a flow, but what follows it may be the rest of its name.
                    position = self._scanned + start
                    claims.append(Claim(NO_SOURCE, b"", b"", tainted, b"", position))
                return taint_end
            if found := _START.match(line):
                counters.harmless += 1
                if found[1] is not None and not tainted:
                    counters.error_log += 1
                    self.mixed = True
                return taint_end
            raw = _compiled(_RAW).match(line)
            # No cut is looked for in what a stranger wrote.
            if (raw is None or not raw.lastgroup) and (
                rest := self._after_torn(line, start, claims)
            ) is not None:
                return self._rest(line[rest:], start + rest, taint_end, claims)
            if raw is not None:
                counters.strangers += 1
                self.dns_log |= bool(raw["dns"]) and not tainted
                if not raw["dns"] or self.dns_log:
                    self._tell(raw[1], tainted)
                if raw.lastgroup is None:
                    return max(taint_end, start + len(line) + REASON_BYTES)
                return max(taint_end, start + raw.end() + _REACH[raw.lastgroup])
        counters.unparsed += 1
        accepted = _ACCEPTED.match(line)
        # Each message begins with a stamp; what does not is of the text that went before.
        stamped = _STAMPED.match(line) is not None
        known = tainted and not (stamped and self.mixed)
        if accepted is not None or not known:
            self._tell(accepted and accepted[2], tainted)
        if accepted is not None:
            self._accepted(line, start, None, tainted, claims)
        if known:
            return taint_end
        if accepted is not None:
            return max(taint_end, start + FREE_TEXT_BYTES)
        counters.error_log += bool(_ERROR_LOG.match(line))
        self.mixed |= stamped
        return max(taint_end, start + len(line) + MESSAGE_BYTES)

    def _after_torn(self, line: bytes, start: int, claims: list[Claim]) -> int | None:
        """Where the last line begins if the others in this one lack their ends; else None.

        A full disk takes the end of a line, newline included, and the next one follows at once.
        Where an engine checks names, nobody else can have such a line written.  The flow of the
        torn line is told of without a user: if names are not checked on its port, the caller
        knows that what follows may be a stranger's.
        """
        cuts = [found.start() for found in _NEXT.finditer(line)]
        pieces = [line[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
        if not pieces or not all(map(_compiled(_TORN).fullmatch, pieces)):
            return None
        for piece, at in zip(pieces, [0, *cuts], strict=False):
            self.counters.torn += 1
            self._accepted(piece, start + at, b"", True, claims, TORN)
        return cuts[-1]

    def _rest(self, line: bytes, start: int, taint_end: int, claims: list[Claim]) -> int:
        """A line that follows a torn one without a newline."""
        if not (found := _CLAIM.match(line)):
            return self._other(line, start, taint_end, claims)
        time, source, detour, email = found.groups(b"")
        self.counters.claims += 1
        position = self._scanned + start
        tainted = start < taint_end
        author = self._author if tainted else NOBODY_KNOWS
        claims.append(Claim(source, detour, email, tainted, time, position, None, author))
        return taint_end

    def _accepted(
        self,
        line: bytes,
        start: int,
        email: bytes | None,
        tainted: bool,
        claims: list[Claim],
        author: bytes = b"",
    ) -> None:
        """Tell of the flow of an accepted line that names no user (None: its end is amiss)."""
        if head := _ACCEPTED_FLOW.match(line):
            position = self._scanned + start
            author = author or (self._author if tainted else NOBODY_KNOWS)
            claims.append(Claim(head[2], b"", email, tainted, head[1], position, None, author))

    def _tell(self, source: bytes | None, tainted: bool) -> None:
        """A stranger's text was written by whoever is at ``source``, if a line says who.

        Within reach of an earlier text, that one's author may have written this, too.
        """
        if not tainted or source is None:
            self._author = source or NOBODY_KNOWS
        elif self._author != NOBODY_KNOWS:
            hosts = [author.rpartition(b":")[0] for author in self._author.split(b" ")]
            if source.rpartition(b":")[0] not in hosts:
                authors = [*self._author.split(b" "), source]
                # The first is certain, the last ones are the nearest.
                self._author = b" ".join([authors[0], *authors[1:][1 - MAX_AUTHORS :]])
        if source is None:
            return
        if len(self.strangers) < MAX_STRANGERS:
            self.strangers.append(Stranger(source, tainted))
        else:
            self.counters.strangers_untold += 1
