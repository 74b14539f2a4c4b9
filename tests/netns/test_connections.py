"""How many connections a user may have: real flows, real sockets, the real table."""

from __future__ import annotations

from pathlib import Path

from vff_qos.core.htb import ENDED_MINOR
from vff_qos.core.identities import parse_identities, with_identities
from vff_qos.core.plan.nft_table import table
from vff_qos.core.plan.objects import NftTable
from vff_qos.core.settings import Settings, parse_settings
from vff_qos.kernel import nft

from .customers import CUSTOMERS, NODE, TCP, UDP, Connection, Site, is_reset, lives
from .harness import MAJOR, Node, cut_marks, eventually, run, status

ALICE, BOB = "alice@x", "bob@x"
ENDED = MAJOR << 16 | ENDED_MINOR
_ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"


def plan(site: Site, text: str, emails: str = ALICE) -> None:
    """A policy that gives users this, in force."""
    site.node.write_policy(f"users: {{{emails}: {{{text}}}}}")
    site.node.run("policy", "apply")


def join(site: Site, count: int, email: str = ALICE, proto: int = TCP) -> list[Connection]:
    """More connections of a user; a word of each."""
    found = [site.connect(CUSTOMERS[0], proto=proto) for _ in range(count)]
    site.node.write(*(connection.line(email) for connection in found))
    eventually(lambda: all(site.mark(connection) for connection in found))
    return found


def idle_s(connection: Connection) -> int:
    """For how long the kernel has seen no packet of a TCP connection."""
    full = int(run("sysctl", "-n", _ESTABLISHED))
    wanted = f"sport={connection.source[1]} "
    for line in run("conntrack", "-L", "-p", "tcp").splitlines():
        if wanted in line:
            return full - int(line.split()[2])
    raise AssertionError("gone")


def count_ended(*connections: Connection) -> int:
    return sum(is_reset(connection) for connection in connections)


def test_the_one_silent_for_longest_goes_first_and_the_others_do_not_stall(site: Site) -> None:
    plan(site, "connections: 3")
    old, silent, busy = join(site, 3)
    neighbour, *_ = join(site, 1, BOB)
    eventually(lambda: idle_s(silent) >= 2)
    assert lives(old)  # it has moved since: born first, and not the first to go
    assert lives(busy)
    (new,) = join(site, 1)
    eventually(lambda: is_reset(silent))
    for connection in (old, busy, new, neighbour):
        assert lives(connection)


def test_new_ones_are_refused_where_the_plan_says_so(site: Site) -> None:
    plan(site, "connections: 2, over_connections: refuse")
    first, second = join(site, 2)
    late = site.connect(CUSTOMERS[0])
    site.node.write(late.line(ALICE))
    eventually(lambda: is_reset(late))
    assert lives(first)
    assert lives(second)
    first.reset()
    (again,) = join(site, 1)  # what has closed makes room at once, its entry lives on
    assert lives(again)
    assert lives(second)


def test_the_201st_connection(site: Site) -> None:
    plan(site, "connections: 200")
    found = join(site, 200)
    assert not count_ended(*found)
    eventually(lambda: idle_s(found[0]) >= 2)
    for connection in found[1:]:
        connection.sock.send(b"x")
    (last,) = join(site, 1)
    eventually(lambda: is_reset(found[0]))
    assert lives(last)
    assert not count_ended(*found[1:])


def test_datagrams_of_an_ended_flow_are_dropped_as_long_as_it_lives(site: Site) -> None:
    plan(site, "connections: 1")
    (first,) = join(site, 1, proto=UDP)
    (second,) = join(site, 1, proto=UDP)
    eventually(lambda: site.mark(first) == ENDED)
    rule = "counter packets"
    run("nft", "insert", "rule", "inet", "vff_qos", "cut_off", "counter")
    for _ in range(3):
        first.sock.send(b"lost")
        second.sock.send(b"heard")
    eventually(lambda: f"{rule} 3 " in run("nft", "list", "chain", "inet", "vff_qos", "cut_off"))
    # Nor does a word bring it back: neither one that was heard before, nor a new agent's.
    site.node.write(first.line(ALICE))
    site.node.stop()
    site.node.start()
    site.node.write(first.line(ALICE), second.line(ALICE))
    eventually(lambda: ENDED in cut_marks())
    assert site.mark(first) == ENDED
    assert site.holders(second) == [ALICE]


def test_a_restart_ends_the_same_as_before(site: Site) -> None:
    plan(site, "connections: 2, over_connections: refuse")
    first, second = join(site, 2)
    site.node.stop()
    site.node.start()
    late = site.connect(CUSTOMERS[0])
    site.node.write(late.line(ALICE), first.line(ALICE), second.line(ALICE))
    eventually(lambda: is_reset(late))
    assert lives(first)
    assert lives(second)


def test_fewer_than_before_and_an_order_for_one_user(site: Site) -> None:
    plan(site, "connections: 4")
    found = join(site, 4)
    plan(site, "connections: 2")
    eventually(lambda: count_ended(*found) == 2)
    assert "connections: 2 at most, of more those silent for longest end" in explained(site)
    eventually(lambda: status(site.node)["follower"]["connections_evicted"] == 2, 10)
    plan(site, "")
    more = join(site, 3)
    assert all(map(lives, more))
    site.node.run("limit", ALICE, "--connections", "1", "--for", "1h")
    eventually(lambda: count_ended(*more) == 2)
    site.node.run("reset", ALICE)
    assert "connections:" not in explained(site)
    assert all(map(lives, join(site, 2)))


def explained(site: Site) -> str:
    return site.node.run("explain", ALICE)


def test_the_kill_switch_lets_all_be(site: Site) -> None:
    plan(site, "connections: 1")
    join(site, 1, proto=UDP)
    join(site, 1, proto=UDP)
    eventually(cut_marks)
    site.node.run("suspend")
    assert not cut_marks()
    assert all(map(lives, [site.connect(CUSTOMERS[0]) for _ in range(3)]))


def test_a_line_of_a_closed_connection_ends_nothing_and_no_listener(site: Site) -> None:
    plan(site, "connections: 1")
    (first,) = join(site, 1)
    ghost = site.connect(CUSTOMERS[0])
    ghost.reset()
    site.node.write(ghost.line(ALICE))
    eventually(lambda: site.holders(ghost) == [ALICE])
    assert lives(first)
    assert lives(site.connect(CUSTOMERS[0]))


def test_services_have_a_number_of_connections_too(node: Node) -> None:
    """Their ports are no service ports: flows are heard of because they are counted."""
    text = f"services: {{web: {{ports: [7000], address: {NODE[0]}}}}}"
    (node.directory / "identities.yml").write_text(text)
    site = Site(node, (443, 7000, 7010))
    site.set(service_ports=[443])
    settings = load_settings(node.directory)
    found = parse_identities(text.encode(), "identities.yml", settings.service_ports)
    nft.replace_table(NftTable(table(with_identities(settings, found))))
    node.write_policy("users: {service:web: {connections: 2, over_connections: refuse}}")
    node.start()
    try:
        kept = [site.connect(ours=(NODE[0], 7000)) for _ in range(2)]
        others = [site.connect(ours=ours) for ours in ((NODE[1], 7000), (NODE[0], 7010))]
        late = site.connect(ours=(NODE[0], 7000))
        eventually(lambda: is_reset(late))
        # A word names no flow of such a port, whether it has a mark or not.
        node.write(*(connection.line(ALICE) for connection in (*kept, *others)))
        for connection in kept:
            assert lives(connection)
            connection.reset()
        assert site.holders(*others) == ["", ""]
        assert all(lives(site.connect(ours=(NODE[0], 7000))) for _ in range(2))
    finally:
        site.close()


def load_settings(directory: Path) -> Settings:
    return parse_settings((directory / "settings.yml").read_bytes(), "settings.yml")
