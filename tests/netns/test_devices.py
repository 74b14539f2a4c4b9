"""How many devices a user may have: real flows from several addresses, the real table."""

from __future__ import annotations

from vff_qos.core.flows.places import SILENT_S
from vff_qos.core.htb import ENDED_MINOR
from vff_qos.core.policy.model import DEVICE_BPS

from .customers import CUSTOMERS, Connection, Site, is_reset, lives
from .harness import eventually, run, status

ALICE, BOB = "alice@x", "bob@x"
_ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"


def plan(site: Site, text: str) -> None:
    """A policy that gives the user this, in force."""
    site.node.write_policy(f"users: {{{ALICE}: {{{text}}}}}")
    site.node.run("policy", "apply")


def come(site: Site, address: str, email: str = ALICE) -> Connection:
    """A connection of a user from an address, and a word of it."""
    made = site.connect(address)
    site.node.write(made.line(email))
    eventually(lambda: site.mark(made) or is_reset(made))
    return made


def is_slow(site: Site, connection: Connection) -> bool:
    limits = site.limits(connection) if site.mark(connection) & 0xFFFF else (0, 0)
    return limits == (DEVICE_BPS, DEVICE_BPS)


def silence(site: Site, connection: Connection, seconds: int) -> None:
    """The kernel has seen no packet of it for so long: what it has left says so."""
    full = int(run("sysctl", "-n", _ESTABLISHED))
    address, port = connection.source
    run("conntrack", "-U", "-p", "tcp", "-s", address, "--sport", str(port),
        "--timeout", str(full - seconds))  # fmt: skip


def test_the_newest_too_many_is_slowed_down_and_nobody_else(site: Site) -> None:
    plan(site, "devices: 3")
    first = [come(site, address) for address in CUSTOMERS[:3]]
    fourth, neighbour = come(site, CUSTOMERS[3]), come(site, CUSTOMERS[3], BOB)
    eventually(lambda: is_slow(site, fourth))
    # All of that address, whatever is said of it, and nobody else there.
    more = site.connect(CUSTOMERS[3])
    site.node.write(more.line(ALICE), fourth.line(ALICE))
    eventually(lambda: is_slow(site, more))
    assert site.holders(*first) == [ALICE] * 3
    assert site.holders(neighbour) == [BOB]
    assert is_slow(site, fourth)
    assert all(map(lives, (*first, fourth, neighbour)))
    shown = site.node.run("explain", ALICE)
    assert "devices: 3 at most, now 3; another one is restricted" in shown
    assert "a device too many" in shown
    # A seat that becomes free is theirs.
    first[0].reset()
    run("conntrack", "-D", "-s", CUSTOMERS[0])
    eventually(lambda: site.holders(fourth, more) == [ALICE] * 2, 15)


def test_the_newest_too_many_is_refused_where_the_plan_says_so(site: Site) -> None:
    plan(site, "devices: 1, over: refuse")
    first, neighbour = come(site, CUSTOMERS[0]), come(site, CUSTOMERS[1], BOB)
    second = come(site, CUSTOMERS[1])
    eventually(lambda: is_reset(second))
    again = come(site, CUSTOMERS[0])  # from where the first one is: the same device
    assert all(map(lives, (first, again, neighbour)))
    assert site.mark(second) & 0xFFFF in (0, ENDED_MINOR)
    eventually(lambda: status(site.node)["follower"]["devices_refused"] == 1, 10)


def test_a_phone_that_changes_its_network_is_let_in_and_who_speaks_again_was_first(
    site: Site,
) -> None:
    plan(site, "devices: 2, grace: 1h")
    old, other = come(site, CUSTOMERS[0]), come(site, CUSTOMERS[1])
    silence(site, old, SILENT_S + 30)
    new = come(site, CUSTOMERS[2])
    assert site.holders(old, other, new) == [ALICE] * 3
    # Within the grace the old address has kept its place: now the new one is too many.
    assert lives(old)
    eventually(lambda: is_slow(site, new), 15)
    assert site.holders(old, other) == [ALICE] * 2


def test_after_the_grace_the_place_is_lost(site: Site) -> None:
    plan(site, "devices: 2, grace: 1min")
    old, other = come(site, CUSTOMERS[0]), come(site, CUSTOMERS[1])
    silence(site, old, 61)
    new = come(site, CUSTOMERS[2])
    assert site.holders(old, other, new) == [ALICE] * 3
    assert lives(old)
    eventually(lambda: is_slow(site, old), 15)
    assert site.holders(other, new) == [ALICE] * 2


def test_an_ipv6_network_of_64_bits_is_one_device(site: Site) -> None:
    node = "2001:db8:0:1::1"
    same = ["2001:db8:0:2::1", "2001:db8:0:2::2"]
    other = "2001:db8:0:3::1"
    site.join_ipv6(node, *same, other)
    site.node.stop()
    site.node.start()
    plan(site, "devices: 1")

    def come6(address: str) -> Connection:
        made = site.connect(address, ours=(node, 443))
        site.node.write(made.line(ALICE))
        eventually(lambda: site.mark(made))
        return made

    first, second, third = come6(same[0]), come6(same[1]), come6(other)
    eventually(lambda: is_slow(site, third))
    assert site.holders(first, second) == [ALICE] * 2


def test_a_restart_lets_in_who_was_in(site: Site) -> None:
    plan(site, "devices: 1")
    first, second = come(site, CUSTOMERS[1]), come(site, CUSTOMERS[0])
    eventually(lambda: is_slow(site, second))
    site.node.stop()
    site.node.start()
    site.node.write(second.line(ALICE), first.line(ALICE))
    third = come(site, CUSTOMERS[0])
    eventually(lambda: is_slow(site, third))
    assert is_slow(site, second)
    assert site.holders(first) == [ALICE]
    # Without the word in the plan all are the user's again.
    plan(site, "")
    eventually(lambda: site.holders(first, second, third) == [ALICE] * 3, 15)
