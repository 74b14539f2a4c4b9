"""The log's grammar against what a real engine wrote, and against what a stranger may write."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from checkout import SAMPLES
from vff_qos.core.claims.accesslog import (
    NAME_BYTES,
    NO_SOURCE,
    Claim,
    Counters,
    Scanner,
    inbound_tag,
    parse_source,
)

TIME = b"2026/11/20 15:48:00.448421"


def claims_of(data: bytes) -> list[Claim]:
    """Claims that name somebody, or hide somebody."""
    return [claim for claim in Scanner().scan(data) if claim.email != b""]


# sample: claims, of them tainted, emails, lines that parse as nothing
EXPECTED = {
    "vless-tcp": (12, 0, {b"alice@x", b"7.bob", b"name with spaces"}, 0),
    "mux-vless": (8, 0, {b"alice@x"}, 0),
    "trojan-tls": (2, 0, {b"alice@x"}, 0),
    "shadowsocks": (3, 0, {b"bob@x"}, 0),
    "ss2022-multi": (3, 0, {b"bob@x"}, 0),
    "vmess-ws": (3, 0, {b"alice@x"}, 0),
    "tr-grpc": (2, 0, {b"attacker@x"}, 0),
    "tr-xhttp-h3": (2, 0, {b"attacker@x"}, 0),
    "reality": (1, 0, {b"alice@x"}, 0),
    "dualstack": (2, 0, {b"attacker@x"}, 0),
    "socks-http-auth": (0, 0, set(), 0),
    "rejected": (0, 0, set(), 0),
    "mask-half": (0, 0, set(), 2),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_engine_writes_is_understood(name: str) -> None:
    scanner = Scanner()
    claims = [c for c in scanner.scan((SAMPLES / f"{name}.log").read_bytes()) if c.email]
    count, tainted, emails, unparsed = EXPECTED[name]
    assert len(claims) == count
    assert sum(claim.tainted for claim in claims) == tainted
    assert {claim.email for claim in claims} == emails
    assert scanner.counters.unparsed == unparsed


@pytest.mark.parametrize("name", ["injection", "inj-trojan", "dnslog", "ws-close"])
def test_no_forged_line_of_the_samples_is_trusted(name: str) -> None:
    claims = claims_of((SAMPLES / f"{name}.log").read_bytes())
    assert claims
    assert not [c for c in claims if c.email and b"victim" in c.email and not c.tainted]


def test_masked_addresses_are_counted() -> None:
    scanner = Scanner()
    scanner.scan((SAMPLES / "mask-half.log").read_bytes())
    assert scanner.counters.masked == 2


def test_what_an_engine_says_at_its_start_taints_nothing() -> None:
    start = (
        b"Xray 26.10.10 (Xray, Penetrates Everything.) 1a2b3c4 (go1.26.1 linux/amd64)\n"
        b"A unified platform for anti-censorship.\n"
        b"2026/11/20 15:48:00 Using config from env: /etc/xray/config.json\n"
        + TIME + b" [Info] infra/conf/serial: Reading config: &{Name:/etc/x.json Format:json}\n"
        + TIME + b" [Warning] common/errors: The feature VMess (with no Forward Secrecy, etc.) is "
        b"deprecated, not recommended for using and might be removed. Please migrate to VLESS "
        b"Encryption as soon as possible.\n"
    )  # fmt: skip
    line = TIME + b" from 192.0.2.1:5 accepted tcp:a.example:443 [in >> out] email: alice@x\n"
    scanner = Scanner()
    (claim,) = scanner.scan(start + line)
    assert not claim.tainted
    assert scanner.counters.harmless == start.count(b"\n")
    assert scanner.counters.error_log == scanner.counters.unparsed == 0
    forger = TIME + b" from 192.0.2.9:9 rejected  proxy/trojan: invalid domain name: a\n"
    (claim,) = scanner.scan(forger + start[:100] + b"\n" + line)
    assert claim.tainted


def test_an_error_log_in_the_same_stream_is_counted() -> None:
    scanner = Scanner()
    line = TIME + b" [Info] [123] proxy/vless: connection ends > EOF\n"
    assert scanner.scan(line) == []
    assert scanner.counters.error_log == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1.2.3.4:5", (0, socket.inet_aton("1.2.3.4"), 5)),
        (b"tcp:1.2.3.4:5", (6, socket.inet_aton("1.2.3.4"), 5)),
        (b"udp:1.2.3.4:65535", (17, socket.inet_aton("1.2.3.4"), 65535)),
        (b"[2001:db8::1]:5", (0, socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 5)),
        (b"tcp:[fe80::1%eth0]:5", (6, socket.inet_pton(socket.AF_INET6, "fe80::1"), 5)),
        (b"[::ffff:1.2.3.4]:5", (0, socket.inet_aton("1.2.3.4"), 5)),
        (b"1.2.3.4:0", None),
        (b"1.2.3.4:65536", None),
        (b"1.2.3.400:5", None),
        (b"[::::]:5", None),
    ],
)
def test_sources(text: bytes, expected: tuple[int, bytes, int] | None) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("rest", "tag", "email"),
    [
        (b"accepted tcp:a.example:443 [in -> out] email: a@x", b"in", b"a@x"),
        (b"accepted tcp:a.example:443 [in >> out] email: a@x", b"in", b"a@x"),
        (b"accepted udp:[2001:db8::1]:53 [in ==> out] email: a@x", b"in", b"a@x"),
        (b"accepted tcp:1.2.3.4:443 email: a@x", b"", b"a@x"),
        (b"accepted 1.2.3.4:443 [direct] email: a@x", b"direct", b"a@x"),
        (
            b"accepted tcp:1.2.3.4:443 [[https://panel.example]-vless:1 >> d] "
            b"email: [https://panel.example]-vless:1|uuid",
            b"[https://panel.example]-vless:1",
            b"[https://panel.example]-vless:1|uuid",
        ),
        (b"accepted tcp:1.2.3.4:443 [a b] c >> d] email: two words", b"a b] c", b"two words"),
        ("accepted tcp:1.2.3.4:443 [a >> b] email: кот".encode(), b"a", "кот".encode()),
        (b"accepted tcp:1.2.3.4:443 [a >> b] email: 12", b"a", b"12"),
    ],
)
@pytest.mark.parametrize("stamp", [TIME, TIME[:19]])
@pytest.mark.parametrize("word", [b"from ", b""])
def test_variants_of_the_accepted_line(
    rest: bytes, tag: bytes, email: bytes, stamp: bytes, word: bytes
) -> None:
    (claim,) = claims_of(stamp + b" " + word + b"tcp:10.0.0.1:5555 " + rest + b"\n")
    assert (inbound_tag(claim.detour), claim.email, claim.tainted) == (tag, email, False)
    assert claim.source == b"tcp:10.0.0.1:5555"


ACCEPTED = TIME + b" from 10.0.0.1:5555 accepted tcp:%s:80 [ss >> direct] email: mallory@x\n"
TRUE_SOURCE = b"10.0.0.1:5555"

#: Where engines print a name that a stranger chose (facts of Xray 26.7 and 26.10).
INBOUNDS = {
    "ss-2022, hysteria and socks4a: in the accepted line": ACCEPTED,
    "trojan": TIME + b" from 10.0.0.1:5555 rejected  proxy/trojan: failed to read address and "
    b"port > common/protocol: invalid domain name: %s\n",
    "socks5": TIME + b" from tcp:10.0.0.1:5555 rejected  proxy/socks: failed to read address > "
    b"common/protocol: invalid domain name: %s\n",
    "dnsLog": TIME + b" UDP:127.0.0.1:53 got answer: %s. -> [192.0.2.55] 1.37ms\n",
}


@pytest.mark.parametrize("inbound", INBOUNDS)
@given(name=st.binary(max_size=300))
@settings(max_examples=300)
def test_random_names_make_no_claim_for_others(inbound: str, name: bytes) -> None:
    for claim in claims_of(INBOUNDS[inbound] % name):
        assert claim.email in (b"mallory@x", None)
        assert claim.source == TRUE_SOURCE


FRAGMENTS = st.sampled_from([
    b"\n", b" ", b"a.example", b":443", b"tcp:", b"email: victim@x", b" email: victim@x",
    b"[in >> out]", b"] email: ", TIME, TIME + b" from 203.0.113.9:4444 accepted tcp:b:443 "
    b"[in >> out] email: victim@x\n", TIME + b" from 10.0.0.1:5556 accepted ", b"accepted",
    b"rejected", b"\xc2\xa0", b"\r", b"\0", b"invalid domain name:",
])  # fmt: skip


@pytest.mark.parametrize("inbound", [name for name in INBOUNDS if "accepted" not in name])
@given(parts=st.lists(FRAGMENTS, max_size=20))
@settings(max_examples=500)
def test_crafted_names_after_rejected_and_dns_lines_are_tainted(
    inbound: str, parts: list[bytes]
) -> None:
    name = b"".join(parts)[:NAME_BYTES]
    for claim in claims_of(INBOUNDS[inbound] % name):
        assert claim.tainted or (claim.source == TRUE_SOURCE and claim.email is None)


def test_a_name_that_breaks_its_own_line_restricts_its_own_flow() -> None:
    (claim,) = claims_of(ACCEPTED % b"two words")
    assert (claim.source, claim.email, claim.tainted) == (TRUE_SOURCE, None, False)


def test_taint_reaches_across_blocks_and_ends() -> None:
    scanner = Scanner()
    good = ACCEPTED % b"a.example"
    scanner.scan(INBOUNDS["trojan"] % b"x")
    assert [c.tainted for c in scanner.scan(good)] == [True]
    while_tainted = 0
    while scanner.scan(good)[0].tainted:
        while_tainted += len(good)
    assert NAME_BYTES - 3 * len(good) < while_tainted < NAME_BYTES


@given(data=st.binary(max_size=4096))
@settings(max_examples=300)
def test_random_bytes_claim_nothing(data: bytes) -> None:
    assert claims_of(data + b"\n") == []


@given(cut=st.integers(0, 4000))
@settings(max_examples=60)
def test_blocks_may_end_at_any_line(cut: int) -> None:
    data = (SAMPLES / "vless-tcp.log").read_bytes()
    end = data.rfind(b"\n", 0, cut) + 1
    scanner = Scanner()
    assert scanner.scan(data[:end]) + scanner.scan(data[end:]) == Scanner().scan(data)


@given(
    lines=st.lists(
        st.sampled_from(
            [line + b"\n" for line in (SAMPLES / "vless-tcp.log").read_bytes().splitlines()]
            + [TIME[:19] + b" tcp:[2001:db8::1]:5 accepted 1.2.3.4:4 [a] b] email: x email: y\n"]
        ),
        min_size=1,
        max_size=30,
    ),
    broken=st.tuples(st.integers(0, 29), st.integers(0, 100), FRAGMENTS),
)
@settings(max_examples=500)
# No text of a stranger's has ended where this empty line is.
@example((SAMPLES / "vless-tcp.log").read_bytes().splitlines(keepends=True)[:2], (0, 0, b"\n"))
def test_a_block_reads_like_its_lines_one_by_one(
    lines: list[bytes], broken: tuple[int, int, bytes]
) -> None:
    number, at, text = broken
    if number < len(lines):
        lines[number] = lines[number][:at] + text + lines[number][at:]
    block = b"".join(lines)
    single_lines = [line + b"\n" for line in block.split(b"\n")[:-1]]
    whole, single = Scanner(), Scanner()
    assert whole.scan(block) == [c for line in single_lines for c in single.scan(line)]
    assert whole.counters == single.counters


def test_sources_out_of_headers_are_counted_and_claim_nothing() -> None:
    good = TIME + b" from 192.0.2.1:5001 accepted tcp:a.example:443 [in >> out] email: alice@x\n"
    counters = Counters()
    scanner = Scanner(counters)
    for source in (b"192.0.2.7:0", b"tcp:192.0.2.7:0", b"[2001:db8::1]:0", b"0.0.0.0:0"):
        for rest in (
            b" [in >> out] email: alice@x\n",
            b" email: alice@x\n",
            b" [in >> out]\n",
            b"\n",
        ):
            claims = scanner.scan(TIME + b" from " + source + b" accepted tcp:a:443" + rest + good)
            # That there was such a line: what follows it may be the rest of a name.
            assert [claim.source for claim in claims] == [NO_SOURCE, b"192.0.2.1:5001"]
            assert [claim.email for claim in claims] == [b"", b"alice@x"]
            assert not claims[1].tainted
    assert counters.no_port == 16
    assert counters.unparsed == 0
