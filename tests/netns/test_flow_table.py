"""What keeps the mirror true: real events, real losses of them, real dumps."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.world import NODE, make_some_flows
from vff_qos.core.claims.trust import PLAIN
from vff_qos.core.flow import Flow
from vff_qos.core.flows.mirror import Held
from vff_qos.core.flows.record import MINOR, VAGUE, owned
from vff_qos.core.settings import Settings
from vff_qos.errors import KernelRefused
from vff_qos.follower import flow_table
from vff_qos.follower.flow_table import FlowTable
from vff_qos.journal import Journal
from vff_qos.kernel.packed import flow_events
from vff_qos.kernel.packed.conntrack import Conntrack

from .entries import begin
from .harness import run

#: More than the socket holds.
MANY = 16_000
ALICE = 7


class Clock:
    """It stands until somebody moves it."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> Iterator[FlowTable]:
    conntrack = Conntrack()
    made = FlowTable(
        Settings(wan="lo", service_ports=((443, 443),)), [NODE], conntrack,
        Journal(clock=lambda: 0.0), lambda _minor: False, clock,
    )  # fmt: skip
    yield made
    made.close()
    conntrack.close()


def flows(first: int, count: int) -> list[Flow]:
    return [
        Flow(6, (0x0A000000 + n // 60_000).to_bytes(4, "big"), 1 + n % 60_000, NODE, 443)
        for n in range(first, first + count)
    ]


def knows(table: FlowTable, made: list[Flow]) -> int:
    """How many of the flows the mirror has."""
    return sum(bool(table.mirror.find(f.src + f.sport.to_bytes(2, "big"))) for f in made)


def test_flows_are_known_by_their_events(table: FlowTable) -> None:
    made = flows(0, 50)
    make_some_flows(made)
    table.drain()
    assert knows(table, made) == 50
    assert table.way == "events"


def test_an_overflow_is_made_up_for_by_a_dump(table: FlowTable) -> None:
    made = flows(0, MANY)
    make_some_flows(made)
    table.drain()
    assert table.losses == 1
    assert knows(table, made) == MANY
    # It may be another flow than the one that was known before.
    (record,) = table.mirror.find(made[0].src + made[0].sport.to_bytes(2, "big"))
    assert record & VAGUE


def test_what_is_lost_during_the_dump_is_made_up_for_soon(
    table: FlowTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = flows(0, MANY)
    real = flow_events.dump_flows

    def dump_slowly(*arguments: Any) -> list[Any]:
        found = list(real(*arguments))
        make_some_flows(made)
        return found

    monkeypatch.setattr(flow_table, "dump_flows", dump_slowly)
    table.compare(lossy=True)
    monkeypatch.undo()
    assert knows(table, made) < MANY
    clock.now_s += 1.5
    table.tend()
    assert knows(table, made) == MANY


def test_who_loses_events_again_and_again_looks_flows_up_for_a_while(
    table: FlowTable, clock: Clock
) -> None:
    for block in range(5):
        run("conntrack", "-F")
        make_some_flows(flows(block, MANY))
        table.drain()
    assert table.way == "look-ups"
    assert table.fileno() == -1
    (new,) = flows(50_000, 1)
    make_some_flows([new])
    client = new.src + new.sport.to_bytes(2, "big")
    assert knows(table, [new]) == 0
    table.look_up([(client, b"in")])
    assert knows(table, [new]) == 1
    clock.now_s += 61.0
    table.tend()
    assert table.way == "events"
    made = flows(55_000, 10)
    make_some_flows(made)
    table.drain()
    assert knows(table, made) == 10


def test_look_ups_have_a_budget(table: FlowTable, clock: Clock) -> None:
    made = flows(0, 5_000)
    assert table._events
    table._events.close()
    table._events = None
    make_some_flows(made)
    wanted = [(f.src + f.sport.to_bytes(2, "big"), b"in") for f in made]
    table.look_up(wanted)
    assert table.look_ups <= 2_000
    assert 0 < knows(table, made) <= 2_000
    assert table.skipped >= 3_000
    clock.now_s += 10.0
    table.look_up(wanted[:10])
    assert knows(table, made[:10]) == 10


def test_a_flow_of_an_address_that_is_new_to_us_is_known(table: FlowTable) -> None:
    other = socket.inet_aton("203.0.113.9")
    flow = flows(0, 1)[0]._replace(dst=other)
    make_some_flows([flow])
    table.drain()
    assert knows(table, [flow]) == 0
    table.set_addresses([NODE, other])
    assert knows(table, [flow]) == 1


def dump_and(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Let something happen after the next dumps, before their events are read."""
    real = flow_events.dump_flows

    def dump(*arguments: Any) -> list[Any]:
        found = list(real(*arguments))
        then()
        return found

    monkeypatch.setattr(flow_table, "dump_flows", dump)


def end_and_begin(flow: Flow) -> None:
    """The same tuple is another connection's."""
    run("conntrack", "-D", "-p", "tcp", "--orig-port-src", str(flow.sport))
    begin([flow])


@pytest.fixture
def alices(table: FlowTable) -> Held:
    """A flow that is somebody's."""
    (flow,) = flows(0, 1)
    make_some_flows([flow])
    table.drain()
    client = flow.src + flow.sport.to_bytes(2, "big")
    (record,) = table.mirror.find(client)
    table.mirror.put(client, owned(record, ALICE, PLAIN))
    return client, record


def test_whose_events_were_lost_during_the_dump_gets_no_mark_of_who_was_there_before(
    table: FlowTable, alices: Held, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow_and_reuse() -> None:
        make_some_flows(flows(1, MANY))
        end_and_begin(flows(0, 1)[0])

    dump_and(monkeypatch, overflow_and_reuse)
    table.compare(lossy=False)
    monkeypatch.undo()
    clock.now_s += 1.5
    heard = table.tend()
    assert heard.restore == []
    (record,) = table.mirror.find(alices[0])
    assert record & MINOR == 0


def test_a_comparison_that_failed_after_lost_events_is_not_one_where_none_were_lost(
    table: FlowTable, alices: Held, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise KernelRefused(errno.EINTR, "reading the conntrack table")

    make_some_flows(flows(1, MANY))
    end_and_begin(flows(0, 1)[0])
    dump_and(monkeypatch, fail)
    table.drain()
    assert table.losses == 1
    monkeypatch.undo()
    clock.now_s += 1.5
    heard = table.tend()
    assert heard.restore == []
    (record,) = table.mirror.find(alices[0])
    assert record & MINOR == 0


def test_a_comparison_that_costs_much_comes_seldom_and_sooner_where_marks_are_missing(
    table: FlowTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = []
    real = flow_events.dump_flows

    def dump(*arguments: Any) -> Any:
        dumps.append(clock.now_s)
        return real(*arguments)

    def dumps_after(seconds: float) -> int:
        before = len(dumps)
        clock.now_s += seconds
        table.tend()
        return len(dumps) - before

    monkeypatch.setattr(flow_table, "dump_flows", dump)
    assert dumps_after(601) == 1
    # What it costs is nothing here, so it comes again as soon as it may.
    assert (dumps_after(599), dumps_after(2)) == (0, 1)
    monkeypatch.setattr(flow_table, "COMPARISON", flow_table.COMPARISON._replace(share=1e-9))
    assert dumps_after(601) == 1
    assert dumps_after(601) == 0
    table.compare_soon()
    assert dumps_after(0) == 1
    table.compare_soon()
    assert (dumps_after(599), dumps_after(2)) == (0, 1)
    # Whatever it costs, it is never forgotten.
    assert (dumps_after(3_599), dumps_after(2)) == (0, 1)
