"""How far a stranger's text reaches: no forged line is trusted, and no honest one is doubted."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkout import SAMPLES
from vff_qos.core.claims.accesslog import (
    CLOSE_BYTES,
    FREE_TEXT_BYTES,
    MAX_AUTHORS,
    MAX_STRANGERS,
    MESSAGE_BYTES,
    NAME_BYTES,
    NO_SOURCE,
    REASON_BYTES,
    STREAM_POSITIONS,
    Claim,
    Scanner,
    Stranger,
    taint_authors,
)
from vff_qos.sources.file import FileSource

TIME = b"2026/11/20 15:48:00.448421"
GOOD = TIME + b" from 192.0.2.1:5001 accepted tcp:a.example:443 [in >> out] email: alice@x\n"
FORGED = TIME + b" from 203.0.113.9:4444 accepted tcp:b:443 [in >> out] email: victim@x"
FORGERS = b"203.0.113.9:4444"
ATTACKER = b"198.51.100.6:6000"

HEAD = TIME + b" from " + ATTACKER
STARTED_TEXT = TIME + b" [Warning] core: Xray 26.10.10 started\n"
#: What an engine prints before a stranger's text and after it, how long that text can be, and how
#: far it is distrusted.
RAW = {
    "trojan": (
        HEAD + b" rejected  proxy/trojan: failed to read address and port > common/protocol: "
        b"invalid domain name: ", b"\n", 255, NAME_BYTES,
    ),
    "shadowsocks": (
        HEAD + b" rejected  common/drain: common/drain: unable to drain connection > EOF > "
        b"proxy/shadowsocks: failed to read address > common/protocol: invalid domain name: ",
        b"\n", 255, NAME_BYTES,
    ),
    "dnsLog": (TIME + b" UDP:127.0.0.1:23053 got answer: ", b". -> [192.0.2.55] 1.3ms\n", 253,
               NAME_BYTES),
    "close": (
        HEAD + b" rejected  proxy/vless/encoding: failed to read request user id > websocket: "
        b"close 1000 (normal): ", b"\n", 123, CLOSE_BYTES,
    ),
    "quic": (
        HEAD + b" rejected  proxy/vless/encoding: failed to read request user id > Application "
        b"error 0x100 (remote): ", b"\n", 1_400, 1_400 + REASON_BYTES,
    ),
    "path in the error log": (
        TIME + b" [Info] transport/internet/splithttp: failed to validate path, request:/",
        b", config:/x/\n", 12_288, 12_288 + MESSAGE_BYTES,
    ),
}  # fmt: skip

EMAILS = st.sampled_from([b"alice@x", "кот".encode(), b"[p]-vless:1|uuid", b"two words"])
TAGS = st.sampled_from(
    [
        b"in -> out",
        "東京出口 >> direct".encode(),
        "🇳🇱 reality >> é".encode(),
        b"[https://p]-v:1 -> d",
    ]
)
HONEST = st.one_of(
    st.builds(
        lambda port, tag, email: TIME
        + b" from 192.0.2.1:%d accepted tcp:a.example:443 [%s] email: %s\n" % (port, tag, email),
        st.integers(1, 65_535), TAGS, EMAILS,
    ),
    st.sampled_from([
        line + b"\n" for line in (SAMPLES / "rejected.log").read_bytes().splitlines()
    ]),
    st.sampled_from([
        TIME + b" from 192.0.2.1:7 accepted //a.example:443 [http >> out]\n",
        TIME + b" from 192.0.2.1:7 accepted http://a.example/?\xc2\xa0\xff [http >> out]\n",
        TIME + b" from tcp:192.0.2.1:7 accepted tcp:a.example:443 [socks >> out]\n",
        TIME + b" from DNS accepted udp:1.1.1.1:53 [dns >> out]\n",
        TIME + b" from 192.0.2.7:0 accepted tcp:a.example:443 [ws >> out] email: alice@x\n",
        "2026/11/20 15:48:00 Using config from env: /etc/прокси/x.json\n".encode(),
    ]),
)  # fmt: skip
PIECES = st.sampled_from(
    [FORGED + b"\n", FORGED, b"\n", b"a.example", b" ", b"x" * 200, b"y" * 3_000, "é".encode()]
)
#: These look like the start of another message, whose reach is its own.
MORE_PIECES = st.one_of(
    PIECES,
    st.sampled_from([TIME + b" ", b"\n" + TIME + b" [Info] a\n", b"\n" + RAW["trojan"][0] + b"\n",
                     HEAD + b" accepted tcp:", b" email: victim@x", b":443 [in >> out]", b"\xff"]),
)  # fmt: skip


#: These look like the start of a message of another kind.
OTHER_PIECES = st.one_of(
    PIECES,
    st.sampled_from([b"\n" + TIME + b" ", b"\n" + TIME + b" [Info] a\n", b"\n" + TIME + b" x" * 30,
                     b"\n" + HEAD + b" accepted tcp:a b", b"\n" + STARTED_TEXT]),
)  # fmt: skip


@dataclass
class Message:
    """One write of the engine's: its bytes, and which of them a stranger chose."""

    data: bytes
    text_start: int = 0
    text_end: int = 0
    reach: int = 0


def raw_message(kind: str, parts: list[bytes]) -> Message:
    before, after, most, reach = RAW[kind]
    text = b"".join(parts)[:most]
    return Message(before + text + after, len(before), len(before) + len(text), reach)


#: An engine whose error log shares the stream says so at its start.
STARTED = Message(STARTED_TEXT)
MIXED = "path in the error log"
OWN = sorted(kind for kind in RAW if kind != MIXED)


def messages(
    pieces: st.SearchStrategy[bytes], kinds: list[str]
) -> st.SearchStrategy[list[Message]]:
    raw = st.builds(raw_message, st.sampled_from(kinds), st.lists(pieces, max_size=12))
    stream = st.lists(st.one_of(HONEST.map(Message), HONEST.map(Message), raw), max_size=30)
    return stream.map(lambda rest: [STARTED, *rest] if MIXED in kinds else rest)


def forged_and_reach(stream: list[Message]) -> tuple[bytes, set[int], list[tuple[int, int]]]:
    """The stream, where lines begin that a stranger wrote, and spans that may be doubted."""
    data, forged, reach = b"", set(), []
    for message in stream:
        start = len(data)
        data += message.data
        for at in range(message.text_start, message.text_end):
            if message.data[at : at + 1] == b"\n":
                forged.add(start + at + 1)
        if message.text_start:
            far = message.reach
            if stream[0] is STARTED and b"\n" + TIME[:4] in message.data:
                far += len(message.data) + MESSAGE_BYTES  # it may be another message's beginning
            reach.append((start + message.text_start, start + message.text_start + far))
    return data, forged, reach


@given(stream=st.one_of(messages(MORE_PIECES, sorted(RAW)), messages(MORE_PIECES, OWN)),
       cuts=st.lists(st.integers(0, 40_000), max_size=8),
       restarts=st.sets(st.integers(0, 7)))  # fmt: skip
@settings(max_examples=400)
def test_no_forged_line_is_trusted_however_the_stream_is_cut(
    stream: list[Message], cuts: list[int], restarts: set[int]
) -> None:
    data, forged, _reach = forged_and_reach(stream)
    for position, claim in _read_in_pieces(data, cuts, restarts):
        assert claim.tainted or position not in forged, data[position : position + 200]


@pytest.mark.parametrize("in_one", [True, False], ids=["one block", "two blocks"])
def test_a_name_of_full_length_that_ends_with_a_newline_reaches_no_further(in_one: bool) -> None:
    before, after, most, _reach = RAW["trojan"]
    name = (b"\n" + FORGED + b"\n").ljust(most - 1, b"x") + b"\n"
    blocks = [before + name, after + GOOD]
    scanner = Scanner()
    found = [scanner.scan(block) for block in ([b"".join(blocks)] if in_one else blocks)]
    claims = [(claim.email, claim.tainted) for claim in itertools.chain(*found)]
    assert claims == [(b"victim@x", True), (b"alice@x", False)]


@given(stream=st.one_of(messages(PIECES, sorted(RAW)), messages(OTHER_PIECES, OWN)),
       cuts=st.lists(st.integers(0, 40_000), max_size=8),
       restarts=st.sets(st.integers(0, 7)))  # fmt: skip
@settings(max_examples=400)
def test_no_honest_line_out_of_reach_is_doubted(
    stream: list[Message], cuts: list[int], restarts: set[int]
) -> None:
    data, _forged, reach = forged_and_reach(stream)
    for position, claim in _read_in_pieces(data, cuts, restarts):
        if not any(start <= position < end for start, end in reach):
            assert not claim.tainted, data[position : position + 200]
            assert claim.email is not None


def _read_in_pieces(data: bytes, cuts: list[int], restarts: set[int]) -> list[tuple[int, Claim]]:
    """Claims and where their lines begin, from a file that grows while the agent restarts."""
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = os.path.join(directory, "access.log")
        with open(path, "wb", buffering=0) as file:
            source = FileSource(path)
            found: list[Claim] = []
            base = [0]
            for number, (start, end) in enumerate(itertools.pairwise(edges)):
                file.write(data[start:end])
                while True:
                    claims = source.read()
                    found += [
                        c._replace(position=c.position % STREAM_POSITIONS + base[-1])
                        for c in claims
                    ]
                    if not source.more:
                        break
                if number in restarts:
                    checkpoint = source.checkpoint()
                    source.close()
                    source = FileSource(path, checkpoint)
                    base.append(checkpoint[0]["offset"])
            source.close()
    return [(claim.position, claim) for claim in found]


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("filling", [b"x", b"\n"])
def test_the_longest_text_forges_nothing(kind: str, filling: bytes) -> None:
    before, after, most, reach = RAW[kind]
    for tail in (FORGED[-most + 1 :], FORGED):
        text = (filling * most)[: max(0, most - len(tail) - 1)] + b"\n" + tail
        claims = Scanner().scan(before + text[-most:] + after)
        assert not [c for c in claims if c.source == FORGERS and not c.tainted]
    scanner = Scanner()
    scanner.scan(before + after + GOOD * (reach // len(GOOD) + 1))
    assert [claim.tainted for claim in scanner.scan(GOOD)] == [False]


def test_a_refused_name_taints_no_more_than_three_lines() -> None:
    """One name in 15 lines is refused: 12 of the other 14 are trusted."""
    before, after, _most, _reach = RAW["trojan"]
    claims = Scanner().scan((before + b"two words" + after + GOOD * 14) * 20)
    assert sum(not claim.tainted for claim in claims) == 11 * 20


def test_a_long_path_on_a_mixed_stream_forges_nothing() -> None:
    before, after, _most, _reach = RAW["path in the error log"]
    for length in (2_500, 12_000):
        (claim,) = Scanner().scan(before + b"q" * length + b"\n" + FORGED + after[-1:])
        assert claim.tainted


def test_a_name_of_an_inbound_that_checks_none_taints_all_it_can_reach() -> None:
    scanner = Scanner()
    name = b"a" * 8_000 + b"\n" + FORGED
    scanner.scan(TIME + b" from tcp:" + ATTACKER + b" accepted tcp:" + name[:8_001])
    assert scanner.taint_left >= 191
    # Whole lines, too long for what an engine checks, are still lines without a user.
    assert FREE_TEXT_BYTES > 8_191
    scanner = Scanner()
    scanner.scan(HEAD + b" accepted tcp:" + b"a" * 8_191 + b":80 [socks >> out]\n")
    assert (scanner.counters.harmless, scanner.taint_left) == (1, 0)


@pytest.mark.parametrize("length", [3_043, 30_000, 65_000])
def test_a_long_address_of_a_page_is_a_lawful_line(length: int) -> None:
    scanner = Scanner()
    scanner.scan(HEAD + b" accepted http://a.example/" + b"u" * length + b" [http >> out]\n")
    (claim,) = scanner.scan(GOOD)
    assert not claim.tainted
    assert scanner.counters.unparsed == 0


@given(parts=st.lists(st.sampled_from([b"proto: a", b"a: b", b" > ", b"EOF", b"tls: x", b": 7",
                                       b"a/b: unknown x", b"x" * 50, b"read tcp 1:1->2:2: "]),
                      max_size=60))  # fmt: skip
@settings(max_examples=300)
def test_no_reason_takes_long_to_read(parts: list[bytes]) -> None:
    began_s = time.thread_time()
    Scanner().scan(HEAD + b" rejected  " + b"".join(parts) + b"\n")
    assert time.thread_time() - began_s < 2.0


def test_a_reason_that_imitates_a_shorter_one_shortens_nothing() -> None:
    before, after, _most, _reach = RAW["quic"]
    text = b"common/protocol: invalid domain name: \n" + b"\n" * 900 + FORGED
    claims = Scanner().scan(before + text + after)
    assert [claim.tainted for claim in claims] == [True]


# -- who sent it --------------------------------------------------------------------------------


def test_who_sends_strangers_text_is_told_with_the_line_it_stands_in() -> None:
    scanner = Scanner()
    before, after, _most, _reach = RAW["trojan"]
    inner = before.replace(ATTACKER, b"192.0.2.77:7")
    scanner.scan(GOOD + before + b"a b" + after + inner + b"a b" + after + GOOD * 9)
    assert scanner.strangers == [Stranger(ATTACKER, False), Stranger(b"192.0.2.77:7", True)]
    scanner.strangers = []
    scanner.scan(RAW["close"][0] + b"x\n")
    scanner.scan(RAW["quic"][0] + b"x\n" + TIME + b" from 9.9.9.9:9 accepted tcp:a b:80\n")
    assert [one.source for one in scanner.strangers] == [ATTACKER, ATTACKER, b"9.9.9.9:9"]


def test_strangers_are_bounded_and_the_others_counted() -> None:
    scanner = Scanner()
    scanner.scan((RAW["trojan"][0] + b"a b\n") * (MAX_STRANGERS + 5))
    assert len(scanner.strangers) == MAX_STRANGERS
    assert scanner.counters.strangers_untold == 5


# -- names of operators -------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["in -> 東京出口", "Вход-1 >> direct", "🇳🇱 reality >> direct",
                                 "in-é >> out", "[панель]-vless:1 >> d"])  # fmt: skip
def test_tags_outside_ascii_name_their_user_and_taint_nobody(tag: str) -> None:
    scanner = Scanner()
    line = GOOD.replace(b"in >> out", tag.encode())
    mixed = TIME + b" from 192.0.2.1:7 accepted //h:1 [" + tag.encode() + b"]\n"
    for block in (line + GOOD, line + mixed + GOOD):
        claims = [claim for claim in scanner.scan(block) if claim.email]
        assert [(c.email, c.tainted) for c in claims] == [(b"alice@x", False)] * 2
        assert claims[0].detour == tag.encode()
    assert scanner.counters.unparsed == 0


@pytest.mark.parametrize("line", [
    "2026/11/20 15:48:00 Using config from env: /etc/прокси/конфиг.json",
    "2026/11/20 15:48:00 Using confdir from arg: /etc/設定",
    "2026/11/20 15:48:00.448421 [Info] infra/conf/serial: Reading config: &{Name:/etc/é.json}",
    "2026/11/20 15:48:00.448421 from 192.0.2.1:5 rejected  proxy/vless/encoding: failed to read "
    "addons > proto:\u00a0cannot parse invalid wire-format data",
    "2026/11/20 15:48:00.448421 from 192.0.2.1:5 rejected  proxy/trojan: пользователь неизвестен",
    "2026/11/20 15:48:00.448421 from unix:/run/прокси.sock accepted tcp:a:1 [in >> é] email: é",
])  # fmt: skip
def test_paths_and_reasons_outside_ascii_taint_nobody(line: str) -> None:
    scanner = Scanner()
    *others, claim = scanner.scan(line.encode() + b"\n" + GOOD)
    assert all(other.source == NO_SOURCE for other in others)
    assert not claim.tainted
    assert scanner.counters.harmless == 1


# -- lines that a full disk has cut -------------------------------------------------------------

CUT = [
    TIME + b" from 192.0.2.1:5001 accepted tcp:a.example:443 [vless-in >> direct] email: alice@x",
    TIME + b" from udp:[2001:db8::1]:5001 accepted udp:[2001:db8::2]:53 ["
    + "東京 >> é".encode() + b"] email: " + "кот".encode(),
    TIME[:19] + b" 192.0.2.1:5001 accepted a.example:443 [d] email: alice@x",
    TIME + b" from 192.0.2.1:5001 rejected  proxy/vless/encoding: failed to read user id > EOF",
    TIME + b" from 192.0.2.1:5001 accepted http://a.example/x?y [http >> direct]",
]  # fmt: skip


@pytest.mark.parametrize("line", CUT)
def test_a_line_that_was_cut_restricts_nobody_and_the_next_one_counts(line: bytes) -> None:
    payer = TIME + b" from 192.0.2.2:5002 accepted tcp:a.example:80 [in >> out] email: bob@x\n"
    for end in range(1, len(line) + 1):
        for before in (b"", GOOD):
            scanner = Scanner()
            claims = scanner.scan(before + line[:end] + payer + GOOD)
            told = [(c.source, c.email, c.tainted) for c in claims if c.email != b""]
            mine = [(b"192.0.2.1:5001", b"alice@x", False)]
            wanted = mine * bool(before) + [(b"192.0.2.2:5002", b"bob@x", False), *mine]
            assert told == wanted, (end, line[:end])
            assert scanner.counters.torn == 1
            assert scanner.counters.unparsed == 0
            assert scanner.taint_left == 0


def test_several_cuts_in_one_line_are_told_apart() -> None:
    scanner = Scanner()
    claims = scanner.scan(CUT[0][:40] + CUT[0][:70] + CUT[1][:90] + GOOD)
    assert [c.email for c in claims if c.email] == [b"alice@x"]
    assert scanner.counters.torn == 3


def test_the_flow_of_a_line_that_was_cut_is_named_without_a_user() -> None:
    """Where names are not checked, its owner could have made it look so."""
    claims = Scanner().scan(CUT[0][:70] + GOOD)
    assert [(c.email, c.tainted, c.position) for c in claims] == [
        (b"", True, 0), (b"alice@x", False, 70),
    ]  # fmt: skip


@given(end=st.integers(1, 300), name=st.sampled_from([b"a", b"a b", b"a\n" + FORGED]))
@settings(max_examples=300)
def test_a_cut_within_a_strangers_text_is_not_taken_for_an_honest_one(
    end: int, name: bytes
) -> None:
    for before, _after, _most, _reach in RAW.values():
        for claim in Scanner().scan(before + name[:end] + FORGED + b"\n"):
            assert claim.tainted


# -- a log that holds more than accesses --------------------------------------------------------


def test_a_stranger_cannot_say_that_the_error_log_is_here(tmp_path: Path) -> None:
    """Else one refused name would taint 16,896 bytes."""
    before, after, _most, _reach = RAW["trojan"]
    text = b"\n" + TIME + b" [Info] x\n" + TIME + b" x\n" + STARTED_TEXT + HEAD + b" accepted x"
    scanner = Scanner()
    claims = scanner.scan(before + text + after + GOOD * 3)
    assert not claims[-1].tainted
    assert scanner.counters.error_log == 0
    assert not scanner.mixed


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("rotate", [False, True])
def test_what_a_log_holds_is_known_over_restarts_and_rotations(
    tmp_path: Path, restart: bool, rotate: bool
) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(STARTED_TEXT + GOOD)
    source = FileSource(str(log))
    assert [claim.tainted for claim in source.read()] == [False]
    if rotate:
        log.rename(tmp_path / "access.log.1")
        log.touch()
    if restart:
        place = source.checkpoint()
        source.close()
        source = FileSource(str(log), place)
    source.tick()
    source.read()
    path = RAW[MIXED][0] + b"q" * 500 + b"\n" + FORGED
    with log.open("ab") as file:
        file.write(RAW["trojan"][0] + b"a b\n" + path + RAW[MIXED][1])
    claims = source.read()
    assert [claim.tainted for claim in claims] == [True]
    assert source.tick() is None
    assert source.counters.error_log >= 1


# -- whose text taints --------------------------------------------------------------------------


def _authors(data: bytes) -> list[list[bytes]]:
    return [
        [author[:-2] for author in taint_authors(claim)]
        for claim in Scanner().scan(data)
        if claim.tainted and claim.email
    ]


def _at(kind: str, source: bytes, text: bytes = b"a b") -> bytes:
    before, after, _most, _reach = RAW[kind]
    return before.replace(ATTACKER, source) + text + after


ONE, TWO = socket.inet_aton("198.51.100.6"), socket.inet_aton("192.0.2.77")


def test_whoever_may_have_written_a_text_is_among_its_authors() -> None:
    """A forger could hide after a text of another address of theirs."""
    two = _at("trojan", b"tcp:192.0.2.77:7")
    assert _authors(_at("trojan", ATTACKER) + GOOD)[0] == [ONE]
    assert _authors(_at("trojan", ATTACKER) + two + GOOD)[0] == [ONE, TWO]
    # The same one again and again is one; the next one alone is known again.
    flood = _at("trojan", ATTACKER) * 20
    assert _authors(flood + GOOD)[0] == [ONE]
    assert _authors(flood + GOOD * 4 + two + GOOD)[-1] == [TWO]
    many = b"".join(_at("close", b"192.0.2.%d:7" % n) for n in range(MAX_AUTHORS + 1))
    # However many more are named: the first one, who is certain, and those who are nearest.
    first, last = (socket.inet_aton(f"192.0.2.{number}") for number in (0, MAX_AUTHORS))
    named = _authors(many + GOOD)[0]
    assert (named[0], named[-1], len(named)) == (first, last, MAX_AUTHORS)


def test_no_message_without_a_source_hides_who_wrote_a_text() -> None:
    """Nor does a text that looks like one make everybody doubtful."""
    name = _at("dnsLog", b"")
    assert _authors(name + GOOD)[0] == []
    assert _authors(name + GOOD * 4 + _at("trojan", ATTACKER) + name + GOOD)[-1] == []
    assert _authors(_at("trojan", ATTACKER, b"\n" + name[:-1]) + GOOD)[0] == [ONE]
    assert _authors(_at("trojan", ATTACKER, b"\n" + TIME + b" [Info] x") + GOOD)[0] == [ONE]
    mixed = _at("trojan", ATTACKER) + _at(MIXED, b"")
    assert _authors(STARTED_TEXT + mixed + GOOD)[0] == []
    assert _authors(_at("trojan", b"unix:@") + GOOD)[0] == []
