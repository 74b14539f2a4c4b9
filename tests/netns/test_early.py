"""Early shaping with real connections: the kernel marks first, the line decides."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.world import make_some_flows
from vff_qos.commands.gc import Collector
from vff_qos.commands.killswitch import suspend
from vff_qos.core.claims.accesslog import Claim, Scanner
from vff_qos.core.flow import Flow
from vff_qos.core.htb import PROVISIONAL
from vff_qos.core.owners import RESTRICTED_KEY
from vff_qos.core.plan import nft_table
from vff_qos.core.plan.desired import our_table
from vff_qos.core.policy.model import Limits, Policy
from vff_qos.core.settings import GcSettings, Settings
from vff_qos.core.sole_users import BAR_S, KEEP_S, PROVE_S
from vff_qos.follower.assign import Assigner, Suspended
from vff_qos.journal import Journal
from vff_qos.kernel import nft
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.lock import Lock
from vff_qos.state import State

from .harness import Client, Node, eventually, look, run

SETTINGS = Settings(
    wan="wan0",
    leaf="pfifo",
    service_ports=((4430, 4430), (5000, 5002)),
    early_shaping=True,
    gc=GcSettings(idle_s=1, min_age_s=0, check_conntrack=False),
)
POLICY = Policy(Limits(10_000_000, 10_000_000))
LOOPBACK = [socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")]
#: Ends the reach of a stranger's text.
HARMLESS = (
    b"2026/11/20 15:48:00.000001 from 1.2.3.4:5 rejected  proxy/trojan: not a valid user\n" * 40
)
STRANGER = (
    b"2026/11/20 15:48:00.000001 from 1.2.3.4:5 rejected  proxy/trojan: failed to read address "
    b"and port > common/protocol: invalid domain name: a\n"
)


class Scene:
    """A node with listeners, nft table and trees; its steady clock is ours."""

    def __init__(self, directory: Path) -> None:
        nft.replace_table(our_table(SETTINGS))
        self.listeners = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            for port in (4430, 6000):
                listener = socket.socket(family)
                listener.bind((address, port))
                listener.listen(64)
                self.listeners.append(listener)
        self.now = 1_000.0
        self.state, self.lock = State(str(directory / "state")), Lock(str(directory / "run"))
        self.conntrack = Conntrack()
        self.scanner = Scanner()
        self.directory = directory
        self.assigner = self.start()

    def start(self) -> Assigner:
        devices = socket.if_nametoindex("vffqos0"), socket.if_nametoindex("wan0")
        assigner = Assigner(
            SETTINGS, POLICY, State(str(self.directory / "state")), self.lock,
            Journal(clock=lambda: 0.0), devices, LOOPBACK,
            steady_clock=lambda: self.now,
        )  # fmt: skip
        assigner.adopt()
        assigner.tend_early()
        return assigner

    def feed(self, *lines: bytes) -> None:
        self.assigner.assign(self.scanner.scan(b"".join(lines)))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.assigner.tend_early()

    def learn(self, user: str, address: str = "127.0.0.1") -> int:
        """``user`` comes from ``address`` for a while; returns their mark."""
        mark: int | None = None
        for _ in range(2):
            client = Client(address, 4430)
            self.feed(client.line(user))
            mark = self.mark(client)
            assert mark and not mark & PROVISIONAL
            self.wait(PROVE_S)
        assert mark
        return mark

    def mark(self, client: Client) -> int | None:
        return self.conntrack.get_marks([prepare(client.flow)])[0]

    def count(self, name: str) -> int:
        return int(self.assigner.snapshot()[name])


@pytest.fixture
def scene(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.assigner.close()


def elements(name: str = "early4") -> dict[str, int]:
    listing = json.loads(run("nft", "-j", "list", "map", "inet", "vff_qos", name))
    (found,) = [item["map"] for item in listing["nftables"] if "map" in item]
    return {key["elem"]["val"]: mark for key, mark in found.get("elem", [])}


@pytest.mark.parametrize(
    ("address", "name", "key"),
    [("127.0.0.1", "early4", "127.0.0.1"), ("::1", "early6", "::")],
)
def test_the_next_connection_is_marked_before_its_line(
    scene: Scene, address: str, name: str, key: str
) -> None:
    before = Client(address, 4430)
    assert scene.mark(before) == 0
    mark = scene.learn("alice@x", address)
    assert elements(name) == {key: mark | PROVISIONAL}
    client = Client(address, 4430)
    assert scene.mark(client) == mark | PROVISIONAL
    elsewhere = Client(address, 6000)
    assert scene.mark(elsewhere) == 0
    # Not a line but the kernel: packets of the first flight are in the user's class.
    assert "marked 1" in first_packets(address, mark)
    scene.feed(client.line("alice@x"))
    assert scene.mark(client) == mark
    assert (scene.count("early_confirmed"), scene.count("early_corrected")) == (1, 0)
    assert scene.count("early_addresses") == 1


def first_packets(address: str, mark: int) -> str:
    """Whether the answer to a connection's first packet bears the class."""
    table = f"""table inet spy {{
      counter marked {{ }}
      chain post {{
        type filter hook postrouting priority {nft_table.POST_PRIORITY + 1}
        tcp flags & (syn | ack) == syn | ack meta mark {mark} counter name marked
      }}
    }}"""
    run("nft", "-f", "-", stdin=table)
    Client(address, 4430)
    listing = json.loads(run("nft", "-j", "list", "counters"))["nftables"]
    run("nft", "delete", "table", "inet", "spy")
    return " ".join(
        f"{c['counter']['name']} {c['counter']['packets']}" for c in listing if "counter" in c
    )


def test_a_line_of_somebody_else_takes_the_flow_and_bars_the_address(scene: Scene) -> None:
    mark = scene.learn("alice@x")
    client = Client("127.0.0.1", 4430)
    assert scene.mark(client) == mark | PROVISIONAL
    scene.feed(client.line("bob@x"))
    bobs = scene.mark(client)
    assert bobs and not bobs & PROVISIONAL and bobs != mark
    assert (scene.count("early_confirmed"), scene.count("early_corrected")) == (0, 1)
    assert scene.count("conflicts") == scene.count("restricted") == 0
    assert elements() == {}  # at once
    for user in ("alice@x", "alice@x", "bob@x"):
        scene.wait(PROVE_S)
        another = Client("127.0.0.1", 4430)
        assert scene.mark(another) == 0
        scene.feed(another.line(user))
    # A flow that a line has given away stays that user's, as ever.
    scene.feed(client.line("alice@x"))
    assert scene.count("conflicts") == 1
    scene.now += BAR_S
    assert scene.learn("alice@x") == mark
    assert elements() == {"127.0.0.1": mark | PROVISIONAL}


def test_tainted_lines_neither_fill_the_map_nor_win_an_early_flow(scene: Scene) -> None:
    for _ in range(3):
        client = Client("127.0.0.1", 4430)
        scene.feed(STRANGER, client.line("mallory@x"))
        scene.wait(PROVE_S)
    assert elements() == {}
    scene.feed(HARMLESS)
    mark = scene.learn("alice@x")
    client = Client("127.0.0.1", 4430)
    assert scene.mark(client) == mark | PROVISIONAL
    scene.feed(STRANGER, client.line("victim@x"))
    restricted = scene.mark(client)
    assert restricted and restricted != mark and not restricted & PROVISIONAL
    assert scene.count("restricted") == 4
    scene.feed(HARMLESS, client.line("alice@x"))
    assert scene.mark(client) == mark
    # Nor does a stranger take the address from its user.
    scene.wait(1)
    assert elements() == {"127.0.0.1": mark | PROVISIONAL}


def test_a_flow_without_a_user_is_let_go(scene: Scene) -> None:
    mark = scene.learn("alice@x")
    nameless, silent = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    scene.wait(30)
    assert scene.mark(silent) == scene.mark(nameless) == mark | PROVISIONAL
    scene.wait(30)
    assert scene.mark(silent) == 0
    assert scene.count("early_expired") == 2
    nameless = Client("127.0.0.1", 4430)
    assert scene.mark(nameless) == mark | PROVISIONAL
    line = nameless.line("x")
    scene.feed(line[: line.index(b" [in")] + b"\n")
    assert scene.mark(nameless) == 0
    assert elements() == {}  # somebody without a name shares the address
    # Their line, if one comes, still counts.
    scene.feed(silent.line("alice@x"))
    assert scene.mark(silent) == mark


def test_elements_expire_and_are_renewed_while_in_use(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft_table, "EARLY_TIMEOUT_S", 1)
    nft.replace_table(our_table(SETTINGS))
    mark = scene.learn("alice@x")
    for _ in range(4):
        time.sleep(0.5)
        scene.wait(nft_table.EARLY_TIMEOUT_S * 100)
        assert elements() == {"127.0.0.1": mark | PROVISIONAL}
    time.sleep(1.5)
    assert elements() == {}
    assert scene.mark(Client("127.0.0.1", 4430)) == 0
    scene.wait(100)
    assert elements()
    scene.wait(KEEP_S)  # nobody came meanwhile
    assert elements() == {}


def test_a_restart_begins_anew_and_keeps_what_is_provisional(scene: Scene) -> None:
    mark = scene.learn("alice@x")
    client, another = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    scene.assigner.close()
    scene.assigner = scene.start()
    assert elements() == {}
    assert scene.mark(client) == mark | PROVISIONAL
    scene.feed(client.line("bob@x"), another.line("alice@x"))
    assert scene.mark(client) not in (0, mark, mark | PROVISIONAL)
    assert scene.mark(another) == mark
    assert scene.count("conflicts") == 0


def test_the_table_lost_and_made_again_is_filled_again(scene: Scene) -> None:
    mark = scene.learn("alice@x")
    run("nft", "delete", "table", "inet", "vff_qos")
    scene.wait(100)
    assert scene.assigner.wants_repair
    nft.replace_table(our_table(SETTINGS))
    scene.assigner.adopt()
    scene.wait(30)
    assert elements() == {"127.0.0.1": mark | PROVISIONAL}
    run("nft", "flush", "map", "inet", "vff_qos", "early4")
    scene.wait(100)
    assert elements() == {"127.0.0.1": mark | PROVISIONAL}


def test_a_flushed_conntrack_table_is_noticed_all_the_same(scene: Scene) -> None:
    mark = scene.learn("alice@x")
    clients = [Client("127.0.0.1", 4430) for _ in range(5)]
    scene.feed(*(client.line("alice@x") for client in clients))
    run("conntrack", "-F")
    for client in clients:
        client.sock.send(b"alive")
    scene.assigner.listen()
    assert {scene.mark(client) for client in clients} == {mark}


def test_collection_and_the_kill_switch_take_the_elements_along(scene: Scene) -> None:
    mark = scene.learn("alice@x")
    owners = scene.state.owners()
    for owner in owners:
        owner.moved -= 100
    scene.state.save_owners(owners)
    lock = Lock(str(scene.directory / "run"))  # that of another process
    collector = Collector(SETTINGS, scene.state, lock)
    assert len(collector.run(dry_run=True)) == 1 and elements()
    collector.run(dry_run=False)
    assert elements() == {}
    scene.wait(1)
    assert elements() == {}  # parked: the class may be somebody else's soon
    client = Client("127.0.0.1", 4430)
    scene.feed(client.line("alice@x"))
    scene.wait(100)
    assert elements() == {"127.0.0.1": mark | PROVISIONAL}
    early = Client("127.0.0.1", 4430)
    assert scene.mark(early) == mark | PROVISIONAL
    suspend(SETTINGS, scene.state, lock, Journal())
    assert elements() == {}
    assert scene.mark(client) == scene.mark(early) == scene.mark(Client("127.0.0.1", 4430)) == 0
    with pytest.raises(Suspended):
        scene.wait(100)
    assert elements() == {}


def test_the_agent_empties_the_maps_of_its_predecessor_and_tells_its_counts(
    node: Node,
) -> None:
    path = node.directory / "settings.yml"
    path.write_text(path.read_text() + "early_shaping: true\n")
    nft.replace_table(our_table(SETTINGS))
    run("nft", "add", "element", "inet", "vff_qos", "early4", "{ 127.0.0.1 : 0xd1000777 }")
    stray = Client("127.0.0.1", 4430)
    assert node.mark(stray) == 0xD1000777
    node.start()
    eventually(lambda: not elements())
    assert node.mark(stray) == 0  # a mark of nobody
    counts = "early shaping: 0 addresses, 0 flows confirmed, 0 corrected, 0 expired"
    eventually(lambda: counts in look(node)[1])  # it tells others once a second


CLAIMS = st.lists(
    st.tuples(st.sampled_from([b"alice@x", b"bob@x", b"", None]), st.booleans()),
    min_size=1,
    max_size=6,
)


def test_whatever_lines_come_an_early_flow_ends_where_an_unmarked_one_does(scene: Scene) -> None:
    mark = scene.learn("victim@x")
    assert scene.assigner._early is not None
    users = scene.assigner._early.users
    numbers = itertools.count(2)

    def outcome(claims: list[tuple[bytes | None, bool]], early: bool) -> str:
        """Whose the flow is after ``claims``, each of which comes by itself."""
        address = b"\x7f" + next(numbers).to_bytes(3, "big")
        for now in (scene.now - PROVE_S, scene.now):
            users.saw(address, "victim@x", now)
        flow = Flow(6, address, 40_000, LOOPBACK[0], 4430)
        make_some_flows([flow])
        if early:
            scene.conntrack.set_marks([prepare(flow, mark | PROVISIONAL)])
        source = f"{socket.inet_ntoa(address)}:40000".encode()
        for email, tainted in claims:
            scene.assigner.assign([Claim(source, b"in", email, tainted, b"", 0, None)])
        (found,) = scene.conntrack.get_marks([prepare(flow)])
        assert found is not None
        if early and claims and all(claim == (b"", True) for claim in claims):
            # A stranger's text ends no limit; the flow's own next line or its time does.
            assert found == mark | PROVISIONAL
            return "nobody"
        assert not found & PROVISIONAL
        owners = {owner.minor: owner.key for owner in scene.state.owners()}
        key = owners[found & 0xFFFF] if found else "nobody"
        return "restricted" if key.startswith(RESTRICTED_KEY) else key

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(claims=CLAIMS)
    @example(claims=[(b"alice@x", False), (b"bob@x", False)])
    @example(claims=[(b"bob@x", True), (b"alice@x", False)])
    @example(claims=[(b"", True)])
    @example(claims=[(None, False), (b"alice@x", False)])
    def same(claims: list[tuple[bytes | None, bool]]) -> None:
        assert outcome(claims, early=True) == outcome(claims, early=False)

    same()
