"""Whatever strangers have the engine write, honest users are in their own classes.

The agent's own process, real connections; the strangers know more than real ones can.
"""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import prepare

from .customers import CUSTOMERS, NODE, STRANGER, UDP, Connection, Site, stamp
from .entries import begin
from .harness import Node, eventually, run

VICTIM, NAT = CUSTOMERS[0], CUSTOMERS[1]
#: Each honest user has one; the default is 2 and 3 Mbit/s.
POLICY = """users:
  blocked@x: {blocked: true}
  slow@x: {upload: 1mbit, download: 1mbit}
  victim@x: {upload: 20mbit, download: 30mbit}
"""
DEFAULT = (2_000_000, 3_000_000)
FREE_TEXT = 8388
RANGE = range(20_000, 20_041)


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Site]:
    node = Node(tmp_path)
    node.write_policy(POLICY)
    made = Site(node, (443, 8443, FREE_TEXT, *RANGE))
    try:
        yield made
    finally:
        node.stop()
        made.close()


def refused(name: str, author: str = STRANGER, port: int = 40_000) -> bytes:
    """The engine refuses a domain and writes it as it is."""
    return (
        f"{stamp()} from {author}:{port} rejected  proxy/trojan: failed to read address and port > "
        f"common/protocol: invalid domain name: {name}\n"
    ).encode()


def forged(source: str, email: str, tag: str = "in", author: str = STRANGER) -> bytes:
    """The same with a whole line in it."""
    line = f"{stamp()} from {source} accepted tcp:example.com:443 [{tag} >> direct] email: {email}"
    return refused(f"a\n{line}", author)


def source(connection: Connection) -> str:
    return "{}:{}".format(*connection.source)


_WRITER = """
import sys, time
path, blocks, period_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
text = sys.stdin.buffer.read()
size = int(sys.argv[4])
with open(path, "ab", buffering=0) as log:
    for number in range(blocks):
        start = number * size % len(text)
        log.write(text[start : start + size])
        time.sleep(period_s)
"""


@contextmanager
def flood(site: Site, lines: list[bytes], per_s: int, seconds: float) -> Iterator[None]:
    """Lines of equal length, written by another process as an engine does it."""
    (length,) = set(map(len, lines))
    period_s, block = 0.01, max(1, per_s // 100)
    lines = lines[: len(lines) // block * block]
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(site.node.log), str(int(seconds / period_s)),
         str(period_s), str(length * block)],
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdin is not None
    writer.stdin.write(b"".join(lines))
    writer.stdin.close()
    try:
        yield
        assert writer.poll() is None, "the flood was over before the honest ones had come"
    finally:
        writer.kill()
        writer.wait()


# -- lines that name no flow ----------------------------------------------------------------------


@pytest.mark.parametrize("ports", [[443, *RANGE], ["443-20999"]], ids=["42 ports", "range"])
def test_forged_lines_that_name_no_flow_keep_no_honest_flow_from_its_class(
    ports: list[int | str], site: Site
) -> None:
    site.set(service_ports=ports)
    site.node.start()
    known = [site.connect(VICTIM) for _ in range(50)]
    site.node.write(*(flow.line(f"user{n}@x") for n, flow in enumerate(known)))
    eventually(lambda: all(map(site.mark, known)))
    numbers = random.Random(12)
    tags = ["range", *(f"tag{number}" for number in range(10, 99))]
    nowhere = [
        forged(f"192.0.2.{numbers.randrange(100, 200)}:{numbers.randrange(20_000, 60_000)}",
               f"u{numbers.randrange(10_000, 99_999)}@x", numbers.choice(tags))
        for _ in range(2_000)
    ]  # fmt: skip
    with flood(site, nowhere, 4_000, 60.0):
        time.sleep(1.0)
        flows = []
        for number in range(50):
            flows.append(site.connect(VICTIM, ours=(NODE[number % 3], RANGE[number % 41])))
            site.node.write(flows[-1].line(f"user{number}@x", "range"))
            time.sleep(0.02)
        eventually(lambda: all(map(site.mark, flows)))
    assert site.holders(*flows) == [f"user{number}@x" for number in range(50)]


# -- lines that name a victim ---------------------------------------------------------------------


def test_a_flood_against_an_address_takes_nothing_from_who_lives_there(site: Site) -> None:
    """The stranger knows the address, names everybody, and is lucky with the ports."""
    site.node.start()
    known = site.connect(VICTIM)
    site.node.write(known.line("victim@x"))
    eventually(lambda: site.mark(known))
    numbers = random.Random(5)
    names = ["blocked@x", "slow@xxx", "nobody@x", "victim@x"]
    lines = [
        forged(f"{VICTIM}:{numbers.randrange(32_768, 60_999)}", f"{numbers.choice(names):>9.9}")
        for _ in range(3_600)
    ]
    longest = max(map(len, lines))
    lines = [line for line in lines if len(line) == longest]
    flows, newcomers = [], []
    with flood(site, lines, 3_600, 60.0):
        time.sleep(1.0)
        for number in range(65):
            flow = site.connect(VICTIM)
            name = names[number % 3]
            site.node.write(forged(source(flow), name), flow.line("victim@x"))
            site.node.write(forged(source(flow), name))
            flows.append(flow)
            if number % 5 == 0:
                new = site.connect(CUSTOMERS[2])
                site.node.write(forged(source(new), "blocked@x"), new.line(f"new{number}@x"))
                newcomers.append(new)
        eventually(lambda: all(map(site.mark, (*flows, *newcomers))))
        held = site.holders(known, *flows)
        assert held == ["victim@x"] * 66
        for new in newcomers:
            assert has_at_least(site, new, DEFAULT)
    # Whoever came during the flood has their own class with the next line.
    site.node.write(refused("x"), harmless())
    site.node.write(*(flow.line(f"late{n}@x") for n, flow in enumerate(newcomers)))
    eventually(lambda: site.holders(*newcomers) == [f"late{n}@x" for n in range(len(newcomers))])


def has_at_least(site: Site, flow: Connection, limits: tuple[int, int]) -> bool:
    """Whether a flow's class has these limits or higher ones."""
    up, down = site.limits(flow)
    return up >= limits[0] and down >= limits[1]


def harmless() -> bytes:
    """More than a stranger's text can taint."""
    line = f"{stamp()} from 192.0.2.5:6 rejected  proxy/trojan: not a valid user\n"
    return line.encode() * 40


@pytest.mark.parametrize("name", ["blocked@x", "slow@x", "unheard@x"])
def test_no_name_brings_a_strangers_flow_below_the_default(name: str, site: Site) -> None:
    site.node.start()
    flow = site.connect(VICTIM)
    site.node.write(forged(source(flow), name))
    eventually(lambda: site.mark(flow))
    # Until the flow's own line comes, the name may be the truth.
    floor = (1_000_000, 1_000_000) if name == "slow@x" else DEFAULT
    assert has_at_least(site, flow, floor)
    assert site.holders(flow) != [name]
    site.node.write(harmless(), flow.line("victim@x"))
    eventually(lambda: site.holders(flow) == ["victim@x"])


def test_a_restriction_does_not_outlive_a_restart(site: Site) -> None:
    site.node.start()
    flow = site.connect(VICTIM)
    site.node.write(forged(source(flow), "unheard@x"))
    eventually(lambda: site.mark(flow))
    site.node.write(harmless())
    time.sleep(1.2)
    site.node.stop()
    site.node.start()
    site.node.write(flow.line("victim@x"))
    eventually(lambda: site.holders(flow) == ["victim@x"])


def test_a_hundred_newcomers_behind_one_address_do_not_share_a_strangers_taint(site: Site) -> None:
    site.node.start()
    flows = [site.connect(NAT) for _ in range(100)]
    for number, flow in enumerate(flows):
        if number % 15 == 7:
            site.node.write(refused("no.such..name"))
        site.node.write(flow.line(f"new{number}@x"))
    eventually(lambda: all(map(site.mark, flows)))
    held = site.holders(*flows)
    in_doubt = [number for number in range(100) if held[number] != f"new{number}@x"]
    # A name has 255 bytes: what it may have been reaches into the third line.
    assert set(in_doubt) <= {n for n in range(100) if n % 15 in (7, 8, 9)}, in_doubt
    for number in in_doubt:
        assert has_at_least(site, flows[number], DEFAULT)
    site.node.write(*(flow.line(f"new{number}@x") for number, flow in enumerate(flows)))
    eventually(lambda: site.holders(*flows) == [f"new{number}@x" for number in range(100)])


# -- inbounds that check no names -----------------------------------------------------------------


def free(flow: Connection, name: str, email: str = "mallory@x") -> bytes:
    """The line of an inbound that writes the name as the client has sent it."""
    return (
        f"{stamp()} from {source(flow)} accepted tcp:{name}:80 [ss22 >> direct] email: {email}\n"
    ).encode()


def accepted(flow: Connection, email: str, tag: str = "in") -> str:
    return (
        f"{stamp()} from {source(flow)} accepted tcp:b.example:443 [{tag} >> direct] email: {email}"
    )


@pytest.mark.parametrize("padding", [0, 2_000, 2_500, 3_043])
@pytest.mark.parametrize("way", ["at once", "after known lines", "while nobody runs"])
def test_names_that_nobody_checked_change_nothing_for_others(
    way: str, padding: int, site: Site
) -> None:
    site.set(free_text_ports=[FREE_TEXT])
    site.node.start()
    alices, mallorys = site.connect(VICTIM), site.connect(STRANGER, ours=(NODE[0], FREE_TEXT))
    young = site.connect(VICTIM)
    site.node.write(alices.line("victim@x"), free(mallorys, "a.example"))
    eventually(lambda: site.mark(alices) and site.mark(mallorys))
    assert site.holders(alices) == ["victim@x"]
    if way == "after known lines":
        site.node.write(*(alices.line("victim@x"),) * 3)
    if way == "while nobody runs":
        time.sleep(1.2)
        site.node.stop()
    for target, name in itertools.product((alices, young, mallorys), ("slow@x", "blocked@x")):
        text = f"a:1 email: mallory@x\n{'x' * padding}\n{accepted(target, name)}\nb"
        site.node.write(free(mallorys, text))
    if way == "while nobody runs":
        site.node.start()
    last = site.connect(NAT)
    site.node.write(harmless() * 7, last.line("last@x"))
    eventually(lambda: site.mark(last))
    assert site.holders(alices) == ["victim@x"]
    assert site.holders(young)[0] not in ("slow@x", "blocked@x")
    # Of the lowest that any rule gives nobody blocked is a part.
    assert site.limits(mallorys) == (1_000_000, 1_000_000)
    site.node.write(young.line("victim@x"))
    eventually(lambda: site.holders(young, last) == ["victim@x", "last@x"])


def test_a_restart_within_a_name_trusts_nothing_of_its_rest(site: Site) -> None:
    site.set(free_text_ports=[FREE_TEXT])
    site.node.start()
    mallorys = site.connect(STRANGER, ours=(NODE[0], FREE_TEXT))
    young, alices = site.connect(VICTIM), site.connect(VICTIM)
    site.node.write(alices.line("victim@x"), harmless() * 7, free(mallorys, "a.example"))
    eventually(lambda: site.mark(mallorys) and site.mark(alices))
    site.node.stop()
    site.node.write(f"{accepted(young, 'mallory@x')}\nb:80 email: mallory@x\n".encode())
    site.node.start()
    last = site.connect(NAT)
    site.node.write(harmless() * 7, last.line("last@x"))
    eventually(lambda: site.mark(last))
    assert site.holders(young)[0] not in ("mallory@x", "")
    site.node.write(young.line("victim@x"))
    eventually(lambda: site.holders(young, last) == ["victim@x", "last@x"])


# -- what strangers could use up ------------------------------------------------------------------


def test_spoofed_addresses_use_up_neither_classes_nor_the_newcomers_time(site: Site) -> None:
    """Each /64 that a forged line names has a flow: a spoofed SYN is enough for that."""
    ours = "2001:db8:98::1"
    run("ip", "address", "add", f"{ours}/64", "dev", "wan0", "nodad")
    site.node.start()
    ports = itertools.count(1_024)
    spoofed = [
        Flow(6, bytes((0x20, 1, 0xD, 0xB8)) + (n + 1).to_bytes(4, "big") + bytes(7) + b"\1",
             next(ports) % 60_000, socket.inet_pton(socket.AF_INET6, ours), 443)
        for n in range(5_000)
    ]  # fmt: skip
    begin(spoofed)
    for start in range(0, len(spoofed), 500):
        site.node.write(*(
            forged(f"[{socket.inet_ntop(socket.AF_INET6, flow.src)}]:{flow.sport}", "x@x")
            for flow in spoofed[start : start + 500]
        ))  # fmt: skip
    marks = site.node.conntrack.get_marks
    eventually(lambda: all(marks([prepare(flow) for flow in spoofed])), 300.0)
    # A sixteenth of the minors, and one for all others.
    assert len(site.node.classes()[0]) <= 4_096 + 8
    site.node.write(harmless())
    newcomers = [site.connect(CUSTOMERS[3]) for _ in range(50)]
    site.node.write(*(flow.line(f"new{n}@x") for n, flow in enumerate(newcomers)))
    eventually(lambda: all(map(site.mark, newcomers)))
    assert site.holders(*newcomers) == [f"new{n}@x" for n in range(50)]
    assert len(site.node.classes()[0]) <= 4_096 + 58


def test_no_text_of_a_stranger_lifts_the_limit_of_a_flow_that_was_handed_on(site: Site) -> None:
    """A line without a user that came within a name that somebody asked for ends nothing."""
    site.node.start()
    first = site.connect(proto=UDP)
    site.node.write(first.line("victim@x"))
    eventually(lambda: site.mark(first))
    moved = site.connect(proto=UDP)
    eventually(lambda: site.holders(moved) == ["victim@x"])
    without_user = moved.line("").replace(b" email: ", b"")
    site.node.write(refused(f"a\n{without_user.decode().strip()}"))
    eventually(lambda: site.status()["ignored_tainted"], 10.0)
    assert site.holders(moved, first) == ["victim@x", "victim@x"]
    for _ in range(30):  # farther than any stranger's text reaches
        site.node.write(first.line("victim@x"))
    site.node.write(without_user)
    eventually(lambda: site.holders(moved) == [""])


def test_no_name_that_nobody_checked_lifts_the_limit_of_a_flow_that_was_handed_on(
    site: Site,
) -> None:
    """The same line within a user's name, where an inbound takes any."""
    site.set(free_text_ports=[FREE_TEXT])
    site.node.start()
    first, mallorys = site.connect(proto=UDP), site.connect(STRANGER, ours=(NODE[0], FREE_TEXT))
    site.node.write(first.line("victim@x"))
    eventually(lambda: site.mark(first))
    moved = site.connect(proto=UDP)
    eventually(lambda: site.holders(moved) == ["victim@x"])
    without_user = moved.line("").replace(b" email: ", b"").decode().strip()
    site.node.write(free(mallorys, f"a:1 email: mallory@x\n{without_user}\nb"))
    last = site.connect(NAT)
    site.node.write(harmless() * 7, last.line("last@x"))
    eventually(lambda: site.mark(last))
    assert site.holders(moved, first) == ["victim@x", "victim@x"]
