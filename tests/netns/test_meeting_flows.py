"""A line meets the flow that it means, by real connections and the agent's own process.

What the users' ends have in common is the point here: ports that go to several of our ends, ends
that are used again, clients that move.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.kernel.packed.conntrack import prepare

from .customers import CUSTOMERS, NODE, UDP, Connection, Site
from .harness import Node, eventually, run, status

ALICE, BOB = "alice@x", "bob@x"
TIMESTAMPS = Path("/proc/sys/net/netfilter/nf_conntrack_timestamp")
PORT = 5555


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Site]:
    node = Node(tmp_path)
    made = Site(node)
    try:
        yield made
    finally:
        node.stop()
        made.close()


ENDS = [(NODE[0], 443, 6), (NODE[0], 443, UDP), (NODE[0], 8443, 6), (NODE[1], 443, 6)]


@pytest.mark.parametrize("at_once", [True, False], ids=["lines at once", "one after the other"])
def test_one_client_port_to_several_of_our_ends_is_several_flows(at_once: bool, site: Site) -> None:
    site.node.start()
    flows: list[Connection] = []
    for end in ENDS:
        flows.append(site.connect(port=PORT, ours=end[:2], proto=end[2]))
        if not at_once:
            site.node.write(flows[-1].line(ALICE))
            eventually(lambda: all(map(site.mark, flows)))
    if at_once:
        site.node.write(*(flow.line(ALICE) for flow in flows))
    eventually(lambda: all(map(site.mark, flows)))
    assert site.holders(*flows) == [ALICE] * len(ENDS)


def test_each_repetition_of_a_line_sets_the_mark_of_its_flow_again(site: Site) -> None:
    site.node.start()
    first, flow = site.connect(), site.connect()
    for connection in (first, flow):  # the second one's line is that of a user who is known
        site.node.write(connection.line(ALICE))
        eventually(lambda: site.mark(connection))  # noqa: B023
    mark = site.mark(flow)
    for _ in range(3):
        assert not site.node.conntrack.set_marks([prepare(flow.flow, 0x17)])
        site.node.write(flow.line(ALICE))
        eventually(lambda: site.mark(flow) == mark)
    # The end is used again: what was repeated says nothing of the new flow.
    port = flow.flow.sport
    flow.reset()
    newcomer = site.connect(port=port)
    site.node.write(newcomer.line(BOB))
    eventually(lambda: site.holders(newcomer, first) == [BOB, ALICE])


@pytest.mark.parametrize("second", [(NODE[0], 8443, 6), (NODE[0], 443, UDP)], ids=["port", "udp"])
@pytest.mark.parametrize("swapped", [False, True], ids=["in turn", "swapped"])
def test_two_users_behind_one_translated_end_are_both_in_their_own_class(
    second: tuple[str, int, int], swapped: bool, site: Site
) -> None:
    site.node.start()
    # Others have used both inbounds before.
    other = [site.connect(CUSTOMERS[1]),
             site.connect(CUSTOMERS[2], ours=second[:2], proto=second[2])]  # fmt: skip
    site.node.write(other[0].line("carol@x", "one"), other[1].line("dave@x", "two"))
    eventually(lambda: all(map(site.mark, other)))
    alices = site.connect(port=PORT)
    bobs = site.connect(port=PORT, ours=second[:2], proto=second[2])
    lines = [alices.line(ALICE, "one"), bobs.line(BOB, "two")]
    site.node.write(*(reversed(lines) if swapped else lines))
    eventually(lambda: site.mark(alices) and site.mark(bobs))
    assert site.holders(alices, bobs) == [ALICE, BOB]
    site.node.write(*lines * 3)
    last = site.connect()
    site.node.write(last.line("last@x", "one"))
    eventually(lambda: site.mark(last))
    assert site.holders(alices, bobs) == [ALICE, BOB]


@pytest.mark.parametrize("end", [(NODE[0], 8443, 6), (NODE[1], 443, 6)], ids=["port", "address"])
def test_two_users_behind_one_translated_end_do_not_doubt_each_other(
    end: tuple[str, int, int], site: Site
) -> None:
    """Nothing is known of the inbounds; the lines come in the order of the connections."""
    site.node.start()
    alices = site.connect(port=PORT)
    bobs = site.connect(port=PORT, ours=end[:2], proto=end[2])
    site.node.write(alices.line(ALICE), bobs.line(BOB))
    eventually(lambda: site.holders(alices, bobs) == [ALICE, BOB])
    site.node.write(alices.line(ALICE), bobs.line(BOB), bobs.line(BOB), alices.line(ALICE))
    last = site.connect()
    site.node.write(last.line("last@x"))
    eventually(lambda: site.mark(last))
    assert site.holders(alices, bobs) == [ALICE, BOB]


def test_inbounds_are_known_again_after_a_restart_by_flows_that_go_on(site: Site) -> None:
    site.node.start()
    ends = (NODE[0], 443), (NODE[0], 8443)
    others = [site.connect(CUSTOMERS[n + 1], ours=end) for n, end in enumerate(ends)]
    lines = [other.line(f"other{n}@x", f"tag{n}") for n, other in enumerate(others)]
    site.node.write(*lines)
    eventually(lambda: all(map(site.mark, others)))
    site.node.stop()
    site.node.start()
    site.node.write(*lines)
    alices, bobs = (site.connect(port=PORT, ours=end) for end in ends)
    # The younger one's line comes first.
    site.node.write(bobs.line(BOB, "tag1"), alices.line(ALICE, "tag0"))
    eventually(lambda: site.holders(alices, bobs) == [ALICE, BOB])


# -- ends that are used again ---------------------------------------------------------------------


def reopened(site: Site, count: int) -> list[Connection]:
    """Flows of bob with the ends that flows of alice had a moment before."""
    first = [site.connect(port=PORT + number) for number in range(count)]
    site.node.write(*(flow.line(ALICE) for flow in first))
    eventually(lambda: all(map(site.mark, first)))
    time.sleep(1.2)  # what looks at flows once a second has looked
    for flow in first:
        flow.reset()
    return [site.connect(port=PORT + number) for number in range(count)]


@pytest.mark.parametrize("count", [1, 24])
def test_reopened_ends_are_nobodys_until_their_own_line(count: int, site: Site) -> None:
    site.node.start()
    flows = reopened(site, count)
    # A flow that goes on wakes whoever believes in a flush.
    other = site.connect(CUSTOMERS[1])
    site.node.write(other.line("carol@x"))
    eventually(lambda: site.mark(other))
    time.sleep(2.5)
    assert site.holders(*flows) == [""] * count
    site.node.write(*(flow.line(BOB) for flow in flows))
    eventually(lambda: all(map(site.mark, flows)))
    assert site.holders(*flows) == [BOB] * count
    site.node.write(*(flow.line(BOB) for flow in flows))
    time.sleep(0.3)
    assert site.holders(*flows) == [BOB] * count


@pytest.mark.parametrize("timestamps", [0, 1], ids=["birth unknown", "birth known"])
def test_a_line_older_than_its_flow_says_nothing(timestamps: int, site: Site) -> None:
    """The line of the flow before is read when the agent comes, and the ends are used again."""
    TIMESTAMPS.write_text(str(timestamps))
    site.node.start()
    site.node.write(site.connect(CUSTOMERS[2]).line("dave@x"))
    time.sleep(1.2)  # the agent has seen the end of the log
    site.node.stop()
    alices = site.connect(port=PORT)
    site.node.write(alices.line(ALICE))
    alices.reset()
    time.sleep(1.1)
    bobs, carols = site.connect(port=PORT), site.connect(CUSTOMERS[1])
    site.node.write(carols.line("carol@x"))
    site.node.start()
    eventually(lambda: site.mark(carols))
    # Where the kernel does not say when a flow began, a line stands until a better one comes.
    assert site.holders(bobs) == ["" if timestamps else ALICE]
    site.node.write(bobs.line(BOB))
    eventually(lambda: site.holders(bobs) == [BOB])
    site.node.write(bobs.line(BOB), carols.line("carol@x"))
    time.sleep(0.3)
    assert site.holders(bobs, carols) == [BOB, "carol@x"]


def test_of_lines_written_while_nobody_ran_each_counts_for_its_own_flow(site: Site) -> None:
    """Of users who are known and have classes: no judge is needed to tell the flows apart."""
    TIMESTAMPS.write_text("1")
    site.node.start()
    known = [site.connect(), site.connect(CUSTOMERS[1])]
    site.node.write(known[0].line(ALICE), known[1].line(BOB))
    eventually(lambda: site.holders(*known) == [ALICE, BOB])
    time.sleep(1.2)  # the agent has seen the end of the log
    site.node.stop()
    alices = site.connect(port=PORT)
    site.node.write(alices.line(ALICE))
    alices.reset()
    time.sleep(0.2)
    bobs, next_ones = site.connect(port=PORT), site.connect(CUSTOMERS[1], port=PORT)
    time.sleep(0.2)
    site.node.write(bobs.line(BOB), bobs.line(BOB), next_ones.line(ALICE))
    site.node.start()
    eventually(lambda: site.holders(bobs, next_ones) == [BOB, ALICE])
    eventually(lambda: status(site.node)["follower"]["stale"] == 1)
    site.node.write(bobs.line(BOB), next_ones.line(BOB))  # two users claim this one
    eventually(lambda: status(site.node)["follower"]["conflicts"] == 1)
    assert site.holders(bobs) == [BOB]


def test_a_line_of_a_reopened_end_counts_though_the_agent_was_held_up(site: Site) -> None:
    site.node.start()
    assert site.node.agent is not None
    alices = site.connect(port=PORT)
    site.node.write(alices.line(ALICE))
    eventually(lambda: site.mark(alices))
    site.node.agent.send_signal(signal.SIGSTOP)
    alices.reset()
    bobs = site.connect(port=PORT)
    site.node.write(bobs.line(BOB))
    time.sleep(0.6)
    site.node.agent.send_signal(signal.SIGCONT)
    eventually(lambda: site.mark(bobs))
    assert site.holders(bobs) == [BOB]


def test_ends_reused_while_nobody_ran_are_no_conflict_afterwards(site: Site) -> None:
    site.node.start()
    first = site.connect(port=PORT)
    site.node.write(first.line(ALICE))
    eventually(lambda: site.mark(first))
    site.node.stop()
    told = site.connect(CUSTOMERS[1], port=PORT)
    site.node.write(first.line(ALICE), told.line("carol@x"))
    first.reset()
    flow = site.connect(port=PORT)
    site.node.start()
    # What was told of while nobody ran is not lost.
    eventually(lambda: site.mark(told))
    site.node.write(flow.line(BOB))
    eventually(lambda: site.holders(flow, told) == [BOB, "carol@x"])
    site.node.write(flow.line(BOB))
    time.sleep(0.3)
    assert site.holders(flow) == [BOB]


def test_a_flush_gives_each_flow_back_to_its_owner_and_reopened_ones_to_nobody(
    site: Site,
) -> None:
    site.node.start()
    stay = [site.connect(port=PORT + n) for n in range(12)]
    udp = [site.connect(port=PORT + n, proto=UDP) for n in range(4)]
    leave = [site.connect(port=PORT + 100 + n) for n in range(12)]
    site.node.write(*(flow.line(ALICE) for flow in (*stay, *leave)))
    eventually(lambda: all(map(site.mark, (*stay, *leave))))
    site.node.write(*(flow.line(ALICE, "quic") for flow in udp))
    # The lines of one port for TCP and UDP are two.
    site.node.write(*(flow.line(ALICE, "quic") for flow in udp))
    eventually(lambda: all(map(site.mark, udp)))
    run("conntrack", "-F")
    for flow in leave:
        flow.reset()
    again = [site.connect(port=PORT + 100 + n) for n in range(12)]
    for flow in (*stay, *udp):
        flow.sock.send(b"awake")
    eventually(lambda: all(map(site.mark, (*stay, *udp))), 7.0)
    assert site.holders(*stay, *udp) == [ALICE] * 16
    assert site.holders(*again) == [""] * 12


# -- clients that move ----------------------------------------------------------------------------


def test_a_udp_client_that_changes_its_port_keeps_its_class(site: Site) -> None:
    site.node.start()
    flow = site.connect(proto=UDP)
    site.node.write(flow.line(ALICE))
    eventually(lambda: site.mark(flow))
    for _ in range(3):
        flow = site.connect(proto=UDP)
        eventually(lambda moved=flow: site.holders(moved) == [ALICE])
    site.node.write(flow.line(ALICE))
    eventually(lambda: not site.mark(flow) >> 31)
    elsewhere = [
        site.connect(proto=UDP, ours=(NODE[0], 8443)), site.connect(CUSTOMERS[1], proto=UDP),
    ]  # fmt: skip
    time.sleep(0.3)
    assert site.holders(*elsewhere) == ["", ""]


def test_a_udp_client_that_moved_while_nobody_ran_is_known_again(site: Site) -> None:
    site.node.start()
    flow = site.connect(proto=UDP)
    site.node.write(flow.line(ALICE))
    eventually(lambda: site.mark(flow))
    site.node.stop()
    moved = site.connect(proto=UDP)
    site.node.start()
    eventually(lambda: site.holders(moved) == [ALICE])


def test_a_udp_flow_that_was_handed_on_is_the_next_ones_who_speaks(site: Site) -> None:
    site.node.start()
    first = site.connect(proto=UDP)
    site.node.write(first.line(ALICE))
    eventually(lambda: site.mark(first))
    newcomer = site.connect(proto=UDP)
    eventually(lambda: site.holders(newcomer) == [ALICE])
    site.node.write(newcomer.line(BOB))
    eventually(lambda: site.holders(newcomer, first) == [BOB, ALICE])


@pytest.mark.parametrize("unknown_udp", ["pass", "restrict"])
def test_a_udp_flow_of_an_address_where_several_live_waits_for_its_line(
    unknown_udp: str, site: Site
) -> None:
    site.set(unknown_udp=unknown_udp)
    site.node.start()
    alices = site.connect(proto=UDP)
    site.node.write(alices.line(ALICE))
    eventually(lambda: site.mark(alices))
    bobs = site.connect(proto=UDP)
    site.node.write(bobs.line(BOB))
    eventually(lambda: site.holders(alices, bobs) == [ALICE, BOB])
    moved = site.connect(proto=UDP)
    if unknown_udp == "restrict":
        eventually(lambda: site.mark(moved))
        assert site.holders(moved)[0] not in ("", ALICE, BOB)
        assert site.limits(moved) == (2_000_000, 3_000_000)  # the default's
    else:
        time.sleep(0.5)
        assert site.holders(moved) == [""]
    site.node.write(moved.line(BOB))
    eventually(lambda: site.holders(moved, alices, bobs) == [BOB, ALICE, BOB])
