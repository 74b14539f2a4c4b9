"""sing-box's log: real lines, forged ones, and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.accesslog import NOBODY_KNOWS, Claim, taint_authors
from vff_qos.core.claims.singbox_log import MAX_IDS, SingboxScanner

STAMP = b"+0000 2026-11-26 14:04:05 "
HOME, ELSEWHERE = b"192.0.2.5:52946", b"198.51.100.9:4444"


def first(ident: int, source: bytes = HOME, kind: bytes = b"vless", tag: bytes = b"in") -> bytes:
    return STAMP + b"INFO [%d 0ms] inbound/%s[%s]: inbound connection from %s\n" % (
        ident, kind, tag, source,
    )  # fmt: skip


def second(
    ident: int, user: bytes, target: bytes = b"a.example:443", kind: bytes = b"vless",
    tag: bytes = b"in",
) -> bytes:  # fmt: skip
    return STAMP + b"INFO [%d 1ms] inbound/%s[%s]: [%s] inbound connection to %s\n" % (
        ident, kind, tag, user, target,
    )  # fmt: skip


def said(text: bytes, step: int = 0) -> list[Claim]:
    """Claims of a log, given in blocks of so many lines."""
    lines, scanner = text.splitlines(keepends=True), SingboxScanner()
    step = step or len(lines)
    blocks = (b"".join(lines[at : at + step]) for at in range(0, len(lines), step))
    return [claim for block in blocks for claim in scanner.scan(block)]


def brief(claims: list[Claim]) -> list[tuple[bytes, bytes | None, bool]]:
    return [(claim.source, claim.email, claim.tainted) for claim in claims]


def test_two_lines_of_one_connection_make_a_claim() -> None:
    text = (
        first(1) + first(2, b"[2001:db8::7]:5", b"hysteria2", b"a tag [x]")
        + second(2, b"bob [b]", kind=b"hysteria2", tag=b"a tag [x]") + second(1, b"alice")
    )  # fmt: skip
    for step in (0, 1):
        claims = said(text, step)
        assert brief(claims) == [(b"[2001:db8::7]:5", b"bob [b]", False), (HOME, b"alice", False)]
        assert [claim.detour for claim in claims] == [b"a tag [x]", b"in"]
        assert claims[0].time == b"2026/11/26 14:04:05"
        assert [claim.position for claim in claims] == [
            len(first(1) + first(2, b"[2001:db8::7]:5", b"hysteria2", b"a tag [x]")),
            text.index(second(1, b"alice")),
        ]


#: What sing-box 1.14.4 has written without a stamp and to a terminal.
COLOURED = (
    b"\x1b[36mINFO\x1b[0m[0001] [\x1b[38;5;36m2742748436\x1b[0m 0ms] inbound/socks[in]: "
    b"inbound connection from 127.0.0.1:47154\n"
    b"\x1b[36mINFO\x1b[0m[0001] [\x1b[38;5;36m2742748436\x1b[0m 0ms] inbound/socks[in]: [bob] "
    b"inbound connection to 127.0.0.1:7000\n"
)


@pytest.mark.parametrize(
    "text",
    [
        COLOURED,
        COLOURED.replace(b"[0001]", b""),
        COLOURED.replace(b"\x1b[36m", b"").replace(b"\x1b[0m", b"").replace(b"\x1b[38;5;36m", b""),
        COLOURED.replace(b"\x1b[36mINFO\x1b[0m[0001]", b"-0730 2026-11-26 14:05:04 INFO"),
        COLOURED.replace(b"inbound connection", b"inbound packet connection"),
        COLOURED.replace(b"0ms]", b"1m2.5s]"),
    ],
)
def test_all_forms(text: bytes) -> None:
    assert brief(said(text)) == [(b"127.0.0.1:47154", b"bob", False)]


#: What it has written of connections that went wrong, and of itself.
HARMLESS = rb"""
+0000 2026-11-26 14:04:04 INFO inbound/socks[in]: tcp server started at 127.0.0.1:24431
+0000 2026-11-26 14:04:04 ERROR network: missing default interface
+0000 2026-11-26 14:04:04 INFO sing-box started (0.00s)
+0000 2026-11-26 14:04:05 INFO [723982476 0ms] inbound/socks[in]: inbound connection from 127.0.0.1:52946
+0000 2026-11-26 14:04:05 INFO [723982476 1ms] inbound/socks[in]: [bob] inbound connection to a.example:7000
+0000 2026-11-26 14:04:05 INFO [723982476 2ms] outbound/direct[0]: outbound connection to a.example:7000
+0000 2026-11-26 14:04:05 INFO [723982476 2ms] dns: exchanged A a.example. 300 IN A 192.0.2.1
+0000 2026-11-26 14:04:05 ERROR [723982476 3ms] connection: open connection to a.example:7000 using outbound/direct[0]: lookup a.example: (exchange6: a.example.: dial UDP connection: dial udp 10.255.255.53:53: connect: network is unreachable)
+0000 2026-11-26 14:04:05 ERROR [3781289965 0ms] inbound/socks[in]: process connection from 127.0.0.1:52968: invalid argument
+0000 2026-11-26 14:04:06 ERROR [816196189 0ms] inbound/shadowsocks[ss in]: process connection from 127.0.0.1:44118: shadowsocks: serve TCP from 127.0.0.1:44118: invalid request
+0000 2026-11-26 14:07:42 ERROR [953593431 0ms] inbound/trojan[t]: process connection from 127.0.0.1:52736: bad request size: fallback disabled
+0000 2026-11-26 14:07:42 ERROR [3637718241 0ms] inbound/trojan[t]: process connection from 127.0.0.1:52738: bad request: fallback disabled
+0000 2026-11-26 14:04:07 INFO [1471215547 0ms] outbound/direct[0]: outbound packet connection
+0000 2026-11-26 14:04:07 ERROR [1471215547 10.5s] connection: connection upload closed: raw-read tcp 127.0.0.1:7000->127.0.0.1:60938: read: connection reset by peer
""".lstrip()  # noqa: E501


def test_what_the_engine_says_by_itself_taints_nothing() -> None:
    text = HARMLESS + first(1) + second(1, b"alice")
    assert brief(said(text)) == [(b"127.0.0.1:52946", b"bob", False), (HOME, b"alice", False)]
    scanner = SingboxScanner()
    scanner.scan(text)
    assert (scanner.counters.unparsed, scanner.counters.strangers) == (0, 0)
    assert scanner.strangers == []


FORGED = first(7, HOME) + second(7, b"victim")
MALLORY = first(3, ELSEWHERE)


@pytest.mark.parametrize(
    "text",
    [
        MALLORY + second(3, b"mallory", b"[a\n" + FORGED + b"x]:80"),
        # Every line is perfect.
        MALLORY + second(3, b"mallory", b"[2001:db8::1]:80\n" + FORGED + second(9, b"m", b"[x]:1")),
        MALLORY + second(3, b"mallory", b"[2001:db8::1]:80\n" + FORGED + b"x]:1"),
        MALLORY + STAMP + b"INFO [3 1ms] outbound/direct[0]: outbound connection to "
        b"[2001:db8::1]:80\n" + FORGED + b"[x]:1\n",
        MALLORY + STAMP + b"ERROR [3 1ms] inbound/socks[in]: process connection from " + ELSEWHERE
        + b": socks5: authentication failed, username=a\n" + FORGED + b"b, password=x\n",
        STAMP + b"ERROR [4 0ms] inbound/vless[ws]: process connection from " + ELSEWHERE
        + b": bad path: /x\n" + b"y" * 60_000 + b"\n" + FORGED,
        MALLORY + STAMP + b"ERROR [3 1ms] connection: open connection to [2001:db8::1]:80\n"
        + (FORGED + b"x") * 6,
        MALLORY + STAMP + b"DEBUG [3 1ms] router: sniffed domain: a\n" + FORGED,
        MALLORY + STAMP + b"INFO [3 1ms] dns: exchanged A a\n" + FORGED,
    ],
)  # fmt: skip
def test_what_is_forged_is_tainted_and_its_author_known(text: bytes) -> None:
    found = [claim for claim in said(text) if claim.email == b"victim"]
    assert found and all(claim.tainted for claim in found)
    for claim in found:
        (author,) = taint_authors(claim)
        assert author == b"\xc6\x33\x64\x09" + (4444).to_bytes(2, "big")


def test_a_name_without_a_colon_forges_nothing() -> None:
    """It has no brackets; and all that a line needs has one."""
    text = MALLORY + second(3, b"mallory", b"a\nb:80") + FORGED
    assert all(claim.tainted for claim in said(text))


def test_taint_ends_and_what_it_reached_stays_tainted() -> None:
    begun = MALLORY + second(3, b"mallory", b"[2001:db8::1]:80")
    rest = b"".join(first(100 + n) for n in range(20))
    claims = said(begun + first(7) + rest + second(7, b"late") + first(8) + second(8, b"alice"))
    assert brief(claims)[1:] == [(HOME, b"late", True), (HOME, b"alice", False)]
    # Of Hysteria 2 names are longer.
    long = begun.replace(b"vless", b"hysteria2") + rest + first(8) + second(8, b"alice")
    assert len(rest) > 1_000
    assert brief(said(long))[1:] == [(HOME, b"alice", True)]


def test_a_forged_first_line_takes_no_connection_over() -> None:
    text = (
        first(1) + MALLORY + second(3, b"mallory", b"[2001:db8::1]:80\n" + first(1, ELSEWHERE))
        + b"".join(first(100 + n) for n in range(20)) + second(1, b"alice")
    )  # fmt: skip
    assert brief(said(text))[-1] == (HOME, b"alice", False)


def test_ids_are_bounded_and_what_is_unknown_claims_nothing() -> None:
    scanner = SingboxScanner()
    for at in range(0, MAX_IDS + 2_000, 1_000):
        scanner.scan(b"".join(first(at + n) for n in range(1_000)))
    assert len(scanner._connections) == MAX_IDS
    assert scanner.scan(second(0, b"alice")) == []
    assert len(scanner.scan(second(MAX_IDS + 1, b"alice"))) == 1


def test_a_connection_may_be_told_of_in_two_files() -> None:
    """And taint goes over."""
    before, after = SingboxScanner(), SingboxScanner(position=1 << 48)
    before.scan(first(1))
    after.follow(before)
    assert brief(after.scan(second(1, b"alice"))) == [(HOME, b"alice", False)]
    before.scan(MALLORY + second(3, b"mallory", b"[2001:db8::1]:80"))
    third = SingboxScanner(position=2 << 48)
    third.follow(before)
    assert brief(third.scan(FORGED)) == [(HOME, b"victim", True)]


def test_what_is_tainted_outlives_a_restart() -> None:
    before, after = SingboxScanner(), SingboxScanner()
    before.scan(MALLORY + second(3, b"mallory", b"[2001:db8::1]:80"))
    after.restore(before.save())
    (claim,) = after.scan(FORGED)
    assert claim.tainted and claim.author == NOBODY_KNOWS


@given(st.lists(st.sampled_from([
    first(1), second(1, b"alice"), first(1, ELSEWHERE), second(1, b"b", b"[::1]:1"), b"x\n",
    second(1, b"b", b"[x"), b"\xff\x00\n", HARMLESS, first(2), second(2, b"a\xc3\xa9"),
]), max_size=12))  # fmt: skip
def test_blocks_may_end_anywhere(parts: list[bytes]) -> None:
    text = b"".join(parts)
    if text:
        assert said(text) == said(text, 1) == said(text, 3)


@given(st.binary(max_size=400))
def test_no_bytes_break_anything(text: bytes) -> None:
    for block in (text + b"\n", first(1) + text + b"\n" + second(1, text.replace(b"\n", b"")[:90])):
        for claim in SingboxScanner().scan(block):
            taint_authors(claim)
