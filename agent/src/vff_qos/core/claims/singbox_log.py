"""The grammar of sing-box's log, level info: from bytes to claims.

Two lines of one connection share an id, the first one has the client's end, the second the user::

    +0000 2026-11-26 14:04:05 INFO [723982476 0ms] inbound/vless[in]: inbound connection from
        192.0.2.5:52946
    +0000 2026-11-26 14:04:05 INFO [723982476 1ms] inbound/vless[in]: [alice] inbound connection to
        a.example:443

The stamp may be missing, or be the seconds since the start; levels and ids may have colours.

All inbounds print a name that a client asks for as it is, newlines included, so every customer can
have whole lines written.  So can strangers without an account, by what a SOCKS client gives as its
name, and by the path of a request to a WebSocket, HTTP or HTTPUpgrade transport, which may be a
mebibyte long.  A name with a colon, without which no line can be forged, is put in brackets, as an
IPv6 address is: ``[2001:db8::1]:80``, a newline, a forged line, a newline and ``...[x]:443`` leave
no syntactic trace.  Hence:

- what has a name or an IPv4 address without brackets as its target is whole, and so is what is said
  of names while that connection is opened;
- what has an IPv6 address may be the beginning of such a name, and taints as many bytes after it
  as a name may have;
- what is none of the lines that are known taints what follows it, too.

Source: log/format.go, route/route.go, route/conn.go and protocol/*/inbound.go of sing-box; seen in
1.14.4.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import NamedTuple

from .accesslog import (
    MAX_LINE_BYTES,
    NOBODY_KNOWS,
    Claim,
    Counters,
    Scanner,
)
from .email import MAX_EMAIL_BYTES

#: Connections whose first line was seen, the latest ones.
MAX_IDS = 16_384
#: A name has one byte for its length, and may be printed as often in a message (the greatest part
#: of an error is its repetitions); elsewhere it has the engine's own bound.
_NAME_BYTES, _PRINTED = 255, 8
_LONG_NAME_BYTES = 2_048
#: What stands around a name.
_AROUND_BYTES = 512
#: Of a request over HTTP: Go's limit for its headers.
_REQUEST_BYTES = (1 << 20) + 65_536
_SHORT_NAMES = frozenset(
    (b"vless", b"vmess", b"trojan", b"shadowsocks", b"shadowtls", b"tuic", b"anytls", b"socks")
)

_TEXT = rb"[ -~\x80-\xff]"
_IPV6 = rb"\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,16})?\]"
_SOURCE = rb"(?:\d{1,3}(?:\.\d{1,3}){3}|" + _IPV6 + rb"):[1-9]\d{0,4}"
_COLOUR = rb"(?:\x1b\[\d{1,3}(?:;\d{1,3}){0,4}m|)"
_STAMP = rb"(?:[+-]\d{4} (\d{4})-(\d\d)-(\d\d) (\d\d:\d\d:\d\d) |)"
#: Groups 1 to 4 are the stamp, 5 the level, 6 the id, 7 the message.
_HEAD = re.compile(
    rb"^" + _STAMP + _COLOUR + rb"(TRACE|DEBUG|INFO|WARN|ERROR|FATAL|PANIC)" + _COLOUR
    + rb"(?:\[\d{4,10}\]|) (?:\[" + _COLOUR + rb"(\d{1,10})" + _COLOUR + rb" [0-9a-z.]{1,16}\] |)"
    rb"(" + _TEXT + rb"+)$"
)  # fmt: skip
_INBOUND = rb"inbound/([a-z0-9]{1,32})\[(" + _TEXT + rb"{1,512}?)\]: "
_FROM = re.compile(_INBOUND + rb"inbound (?:packet )?connection from (" + _SOURCE + rb")")
#: A target that is whole, and one that may be the beginning of a name.
_WHOLE = rb"[A-Za-z0-9._-]{1,2048}:\d{1,5}"
_TARGET = rb"(?:" + _WHOLE + rb"|(" + _IPV6 + rb"):\d{1,5})"
_TO = re.compile(
    _INBOUND + rb"(?:\[(" + _TEXT + rb"{1,%d})\] |)" % MAX_EMAIL_BYTES
    + rb"inbound (?:packet )?connection to " + _TARGET
)  # fmt: skip
_OUTBOUND = rb"outbound/[a-z0-9]{1,32}\[" + _TEXT + rb"{1,512}?\]: outbound (?:packet )?connection"
_TO_IPV6 = re.compile(_OUTBOUND + rb" to " + _IPV6 + rb":\d{1,5}")
#: Other lines of a connection in which no stranger can have put a newline.
_HARMLESS = re.compile(
    _OUTBOUND + rb"(?: to " + _WHOLE + rb")?"
    # what is told again within the line is the same name, which is whole
    rb"|connection: open (?:packet )?connection to " + _WHOLE + rb" using " + _TEXT + rb"+"
    rb"|connection: (?:packet )?(?:connection |)(?:upload|download) [a-z]{1,16}"
    rb"(?:: [a-z-]{1,16}(?: (?:tcp|udp)[46]?)? [0-9A-Fa-f:.\[\]%>-]{1,128})?"
    rb"(?:: [a-z /]{1,48}){0,3}"
    rb"|" + _INBOUND + rb"process (?:packet )?connection from " + _SOURCE
    + rb"(?:: (?:[a-z0-9-]{1,32}|serve (?:TCP|UDP) from " + _SOURCE + rb")){0,3}"
    rb": (?:EOF|unexpected EOF|i/o timeout|invalid (?:request|argument)|bad (?:header|version)"
    rb"|bad request(?: size)?(?:: fallback disabled)?"
    rb"|context canceled|context deadline exceeded|use of closed network connection"
    rb"|read (?:tcp|udp)[46]? [0-9A-Fa-f:.\[\]%>-]{1,128}: [a-z /]{1,48}(?:: [a-z ]{1,48})?"
    rb"|(?:remote|local) error: tls: [a-z0-9 ]{1,64})"
)  # fmt: skip
#: What the engine says of itself, without the id of a connection.
_OWN = re.compile(
    rb"(?:[a-z-]{1,32}/[a-z0-9-]{1,32}\[" + _TEXT + rb"{1,512}?\]: (?:tcp|udp) server started at "
    + _TEXT + rb"{1,256}|sing-box (?:started|closed)" + _TEXT + rb"{0,64}"
    rb"|network: [a-z ]{1,128}|clash-api: restful api listening at [0-9A-Fa-f:.\[\]]{1,64})"
)  # fmt: skip
_ASKED = re.compile(
    _INBOUND
    + rb"(?:\["
    + _TEXT
    + rb"{1,%d}\] |)inbound (?:packet )?connection to " % MAX_EMAIL_BYTES
)
_PROCESS = re.compile(_INBOUND + rb"process (?:packet )?connection from (" + _SOURCE + rb"): ")


class _FirstLine(NamedTuple):
    """What the first line of a connection said, and whether it may have been a stranger's."""

    source: bytes
    kind: bytes
    tainted: bool
    author: bytes
    #: Whether its target is known to be no forger's name.
    is_whole: bool = False


class SingboxScanner(Scanner):
    """Claims out of blocks of whole lines of sing-box's log."""

    needs_in_file = '"log": {"level": "info", "timestamp": true, "output": "%s"}'
    needs_in_journal = '"log": {"level": "info", "timestamp": true}'

    def __init__(self, counters: Counters | None = None, position: int = 0) -> None:
        """As `Scanner`."""
        super().__init__(counters, position)
        self._connections: OrderedDict[bytes, _FirstLine] = OrderedDict()

    def follow(self, before: Scanner) -> None:
        """The stream goes on from where another one ended, between two lines perhaps."""
        super().follow(before)
        if isinstance(before, SingboxScanner):
            self._connections = OrderedDict({**before._connections, **self._connections})

    def scan(self, block: bytes) -> list[Claim]:
        """Claims of ``block``, which must end with a newline, in the order of the lines."""
        claims: list[Claim] = []
        start, taint_end = 0, self._taint_left
        for line in block.split(b"\n")[:-1]:
            self.counters.lines += 1
            taint_end = max(taint_end, self._line(line, start, start < taint_end, claims))
            start += len(line) + 1
        self._taint_left = max(0, taint_end - len(block))
        self._scanned += len(block)
        return claims

    def _line(self, line: bytes, start: int, tainted: bool, claims: list[Claim]) -> int:
        """One line; returns up to where it taints what follows."""
        head = _HEAD.match(line) if len(line) <= MAX_LINE_BYTES else None
        if head is None:
            # Of a name, or no log of sing-box.
            return self._unknown(b"", None, start, len(line), tainted)
        ident, message = head[6] or b"", head[7]
        known = self._connections.get(ident)
        if head[5] == b"INFO" and ident:
            if found := _FROM.fullmatch(message):
                self.counters.harmless += 1
                self._begin(ident, found[3], found[1], tainted)
                return 0
            if found := _TO.fullmatch(message):
                self._claim(head, found, start, tainted, known, claims)
                if found[4] is None:
                    if known is not None and not tainted and not known.tainted:
                        self._connections[ident] = known._replace(is_whole=True)
                    return 0
                self._tell_of(_certain(known), tainted)
                return start + len(line) + 1 + _reach(found[1], 1)
            if _TO_IPV6.fullmatch(message):
                self.counters.harmless += 1
                self._tell_of(_certain(known), tainted)
                return start + len(line) + 1 + _reach(known.kind if known else b"", 1)
        of_whole = known is not None and known.is_whole and message.startswith(b"dns: ")
        if of_whole or (_HARMLESS if ident else _OWN).fullmatch(message):
            self.counters.harmless += 1
            return 0
        return self._unknown(message, known, start, len(line), tainted)

    def _begin(self, ident: bytes, source: bytes, kind: bytes, tainted: bool) -> None:
        if tainted and ident in self._connections:
            return  # what nobody can have forged stays
        author = self._author if tainted else NOBODY_KNOWS
        self._connections[ident] = _FirstLine(source, kind, tainted, author)
        self._connections.move_to_end(ident)
        if len(self._connections) > MAX_IDS:
            self._connections.popitem(last=False)

    def _claim(
        self,
        head: re.Match[bytes],
        found: re.Match[bytes],
        start: int,
        tainted: bool,
        known: _FirstLine | None,
        claims: list[Claim],
    ) -> None:
        if known is None or found[3] is None:
            # Its first line was not seen; or an inbound without users, a stream within a mux.
            self.counters.harmless += 1
            return
        self.counters.claims += 1
        author = self._author if tainted else known.author
        time = b"%s/%s/%s %s" % head.group(1, 2, 3, 4) if head[1] else b""
        claims.append(
            Claim(
                known.source, found[2], found[3], tainted or known.tainted, time,
                self._scanned + start, None, author,
            )
        )  # fmt: skip

    def _tell_of(self, source: bytes | None, tainted: bool) -> None:
        """A text may have been written by whoever is at ``source``; that is no offence yet."""
        strangers = self.strangers
        self.strangers = []
        self._tell(source, tainted)
        self.strangers = strangers

    def _unknown(
        self, message: bytes, known: _FirstLine | None, start: int, size: int, tainted: bool
    ) -> int:
        """A line that may hold a stranger's text, or be one; returns how far that reaches."""
        end = start + size + 1
        if not message and tainted:
            self.counters.unparsed += 1
            return 0  # a part of the text that taints it, whose reach is known
        if _ASKED.match(message):
            # Nothing but a client's name makes such a line unlike the others.
            self.counters.strangers += 1
            self._tell(_certain(known), tainted)
            return end + _reach(known.kind if known else b"", 1)
        self.counters.unparsed += 1
        if found := _PROCESS.match(message):
            self._tell_of(found[3], tainted)
            return end + (_reach(found[1], 2) if found[1] == b"socks" else _REQUEST_BYTES)
        self._tell_of(_certain(known), tainted)
        return end + _reach(known.kind if known else b"", _PRINTED)


def _certain(known: _FirstLine | None) -> bytes | None:
    """Where a connection comes from, if nobody can have forged that."""
    return known.source if known is not None and not known.tainted else None


def _reach(kind: bytes, times: int) -> int:
    """How far the names that a client of such an inbound gives reach if printed so often."""
    if kind in _SHORT_NAMES:
        return _NAME_BYTES * times + _AROUND_BYTES
    return _LONG_NAME_BYTES * times + _AROUND_BYTES
