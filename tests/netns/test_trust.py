"""Whatever a stranger writes into a name: nobody else changes class, and nobody gains by it.

Real conntrack entries, the real grammar and assigner; the engine's part is its line formats. The
stranger is given what no real one has: the exact time, and everybody's addresses and ports.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.world import NODE, make_some_flows
from vff_qos.core import owners
from vff_qos.core.claims.accesslog import NAME_BYTES, STREAM_POSITIONS, Scanner
from vff_qos.core.flow import Flow
from vff_qos.core.flows import mirror
from vff_qos.core.policy.model import Limits

from .entries import begin
from .harness import run
from .hostile import (
    ATTACKERS,
    ATTACKERS_DOWN_BPS,
    ATTACKERS_UP_BPS,
    AWAY,
    DEFAULT_BPS,
    FORMATS,
    HOME,
    POLICY,
    SS2022,
    STAMP,
    TROJAN,
    VLESS,
    Scene,
    text,
    true_line,
)

WHO = st.sampled_from([b"FAR", b"NEAR", b"SILENT", b"OWN"])
FORGED = st.builds(
    lambda who, email, end: STAMP + b" from " + who + b" accepted tcp:b.example:443 [vless-in >> "
    b"direct] email: " + email + end,
    WHO,
    st.sampled_from([b"victim@x", b"attacker@x", b"nobody@x", b"rich@x"]),
    st.sampled_from([b"\n", b""]),
)  # fmt: skip
PIECES = st.one_of(
    FORGED,
    FORGED,
    st.sampled_from([
        b"a.example", b":80 [ss22 >> direct] email: victim@x\n", b":80 email: nobody@x\n", b"\n",
        STAMP + b" from SILENT accepted tcp:b", STAMP + b" from FAR accepted tcp:b", b" ", b"\r\n",
        b":80 [vless-in >> direct] email: victim@x\n" + STAMP + b" from OWN accepted tcp:b",
    ]),
    st.binary(max_size=40),
)  # fmt: skip

#: Two perfect lines out of one name, as the real engine printed them.
PERFECT = [b"a:80 [vless-in >> direct] email: victim@x\n", STAMP + b" from SILENT accepted tcp:b"]


@pytest.mark.parametrize("inbound", FORMATS)
def test_no_name_relabels_a_flow_or_raises_a_limit(inbound: str, scene: Scene) -> None:
    port, line = FORMATS[inbound]

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pieces=st.lists(PIECES, max_size=12), real_first=st.booleans())
    @example(pieces=PERFECT, real_first=False)
    @example(pieces=PERFECT, real_first=True)
    def attack(pieces: list[bytes], real_first: bool) -> None:
        own, silent = scene.open(HOME, port), scene.open(HOME, VLESS)
        name = b"".join(pieces)
        for word, flow in ((b"FAR", scene.far), (b"NEAR", scene.near), (b"SILENT", silent),
                           (b"OWN", own)):  # fmt: skip
            name = name.replace(word, text(flow))
        # A checked name has one byte for its length; the others may have more.
        blob = line % (text(own), name[: 2_048 if port == SS2022 else NAME_BYTES])
        real = true_line(silent, b"attacker@x")
        scene.feed(*((real, blob) if real_first else (blob, real)))
        assert scene.marks(scene.far, scene.near) == scene.victims
        up, down = scene.limits(silent)
        assert up <= ATTACKERS_UP_BPS and down <= ATTACKERS_DOWN_BPS
        if port == SS2022:
            up, down = scene.limits(own)
            assert up <= ATTACKERS_UP_BPS and down <= ATTACKERS_DOWN_BPS

    attack()


def test_a_flood_of_rejected_lines_does_not_put_the_others_below_the_default(scene: Scene) -> None:
    flood = FORMATS["trojan"][1] % (text(scene.far), b"x" * 200)
    for _ in range(20):
        scene.feed(flood * 50)
        stranger = scene.open(socket.inet_aton("192.0.2.5"), VLESS)
        regular = scene.open(AWAY, VLESS)
        scene.feed(flood, true_line(stranger, b"new@x"), flood, true_line(regular, b"victim@x"))
        assert min(scene.limits(stranger)) >= DEFAULT_BPS
        assert scene.limits(regular) == [50_000_000, 50_000_000]


def test_a_flood_does_not_free_its_author(scene: Scene) -> None:
    flood = FORMATS["trojan"][1] % (text(scene.far), b"x" * 200)
    mine = scene.open(HOME, VLESS)
    scene.feed(flood * 50, true_line(mine, b"attacker@x"), flood * 50)
    assert scene.limits(mine)[1] <= ATTACKERS_DOWN_BPS
    again = scene.open(HOME, VLESS)
    scene.feed(flood * 50, true_line(again, b"attacker@x"))
    assert scene.limits(again)[1] <= ATTACKERS_DOWN_BPS


def test_a_restart_raises_no_restricted_limit(scene: Scene) -> None:
    mine = scene.open(HOME, VLESS)
    scene.feed(true_line(mine, b"attacker@x"), true_line(mine, b"victim@x"))
    # It may be either's: whoever it is has no less than the lower of their plan and the default.
    assert scene.limits(mine) == list(POLICY.default[:2])
    lowered = replace(POLICY, default=Limits(500_000, 10_000_000))
    for policy, limits in ((POLICY, list(POLICY.default[:2])), (lowered, [500_000, 10_000_000])):
        scene.assigner.close()
        scene.assigner = scene.start(policy)
        assert scene.limits(mine) == limits
        another = scene.open(HOME, VLESS)
        scene.feed(true_line(another, b"victim@x"), true_line(another, b"new@x"))
        assert scene.limits(another) == limits


def test_a_distrusted_flow_is_freed_by_a_line_that_can_be_trusted(scene: Scene) -> None:
    flow = scene.open(AWAY, VLESS)
    scene.feed(FORMATS["trojan"][1] % (text(flow), b"x"), true_line(flow, b"honest@x"))
    assert scene.limits(flow) == [10_000_000, 10_000_000]
    restricted = scene.marks(flow)
    harmless = STAMP + b" from 1.2.3.4:5 rejected  proxy/trojan: not a valid user\n"
    scene.feed(harmless * 40, true_line(flow, b"honest@x"))
    assert scene.marks(flow) != restricted
    other = scene.open(AWAY, VLESS)
    scene.feed(true_line(other, b"honest@x"))
    assert scene.marks(other) == scene.marks(flow)


def test_forged_names_cannot_use_up_the_minors(scene: Scene) -> None:
    before = len(scene.tc.classes(scene.devices[1], 0x5100))
    for number in range(300):
        own = scene.open(HOME, SS2022)
        scene.feed(FORMATS["ss-2022"][1] % (text(own), b"a:1 email: made-up-%d\nx" % number))
        assert scene.limits(own) == list(ATTACKERS[:2])
    assert len(scene.tc.classes(scene.devices[1], 0x5100)) <= before + 1


@pytest.mark.parametrize("own", [False, True], ids=["text names them", "one account has them"])
def test_many_addresses_where_no_names_are_checked_cannot_use_up_the_minors(
    own: bool, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SYN from any address makes a flow there, and a stranger's text names it; or a customer has
    a network."""
    monkeypatch.setattr(owners, "RESTRICTED_MAX", 20)
    before = len(scene.tc.classes(scene.devices[1], 0x5100))
    flows = [Flow(6, bytes((10, 9, n, 1)), 5_555, NODE, SS2022) for n in range(100)]
    begin(flows)
    for flow in flows:
        if own:
            scene.feed(FORMATS["ss-2022"][1] % (text(flow), b"a"))
        else:
            scene.feed(FORMATS["trojan"][1] % (text(scene.far), b"a\n" + true_line(flow, b"x")))
    assert len(scene.tc.classes(scene.devices[1], 0x5100)) <= before + 20 + 2
    # Nor does anybody get more by it.
    assert scene.limits(flows[-1]) == scene.limits(flows[0]) == list(ATTACKERS[:2])


def test_a_comparison_gives_no_mark_back_to_who_has_gone(scene: Scene) -> None:
    """The end of a flow and the next one's beginning wait while the table is read."""
    flow = scene.open(AWAY, VLESS)
    scene.feed(true_line(flow, b"victim@x"))
    run("conntrack", "-D", "-p", "tcp", "--orig-port-src", str(flow.sport))
    begin([flow])
    scene.assigner._flows._next_compare = 0.0
    scene.assigner.tend_flows()
    assert scene.marks(flow) == [0]


@pytest.mark.parametrize("tag", [b"vless-in", b"of-nobody"])
def test_a_second_flow_of_the_same_port_does_not_hide_where_a_name_came_from(
    tag: bytes, scene: Scene
) -> None:
    """Within the name stands a tag, too, and it would pick the flow whose inbound checks names."""
    port, line = FORMATS["ss-2022"]
    own = scene.open(HOME, port)
    begin([own._replace(dport=VLESS)])
    forged = STAMP + b" from %s accepted tcp:b:443 [vless-in >> direct] email: attacker@x\n" % (
        text(scene.far)
    )  # fmt: skip
    name = b"a:80 [%s >> direct] email: attacker@x\n%s" % (tag, forged)
    scene.feed(line % (text(own), name))
    assert scene.marks(scene.far, scene.near) == scene.victims


def test_a_second_flow_of_the_same_port_gets_no_more_by_a_name_that_nobody_checked(
    scene: Scene,
) -> None:
    port, line = FORMATS["ss-2022"]
    own = scene.open(HOME, port)
    second = own._replace(dport=VLESS)
    begin([second])
    # Whoever is named: a user who is known there, one who is not, nobody.
    for email in (b" email: victim@x", b" email: new@x", b""):
        scene.feed(line % (text(own), b"a:80 [vless-in >> direct]%s\nb" % email))
        assert scene.limits(own) == [ATTACKERS_UP_BPS, ATTACKERS_DOWN_BPS]
        assert max(scene.limits(second)) <= 50_000_000


def test_a_flow_that_was_forgotten_in_a_flood_does_not_hide_where_a_name_came_from(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is looked up, but only where flows with the tag that stands in the name go."""
    monkeypatch.setattr(mirror, "GENERATION", 10)
    port, line = FORMATS["ss-2022"]
    own = scene.open(HOME, port)
    begin([own._replace(dport=VLESS)])
    begin([Flow(6, socket.inet_aton("192.0.2.5"), 1_024 + n, NODE, VLESS) for n in range(40)])
    forged = STAMP + b" from %s accepted tcp:b:443 [vless-in >> direct] email: attacker@x\n" % (
        text(scene.far)
    )  # fmt: skip
    scene.feed(line % (text(own), b"a:80 [vless-in >> direct] email: attacker@x\n" + forged))
    assert scene.marks(scene.far, scene.near) == scene.victims


@pytest.mark.parametrize("way", ["nobody read", "another port's ended, too"])
def test_a_name_is_one_though_its_connection_has_ended_unseen(way: str, scene: Scene) -> None:
    """A connection to an inbound that checks names comes from the same end, to hide that."""
    own, flow = scene.open(HOME, VLESS), scene.open(AWAY, VLESS)
    scene.feed(true_line(own, b"attacker@x"))
    hidden = scene.open(HOME, SS2022)
    make_some_flows([hidden._replace(dport=VLESS), hidden._replace(dport=TROJAN)])
    since_s = time.monotonic() - (60 if way == "nobody read" else 1)
    for port in (SS2022, TROJAN)[: 1 if way == "nobody read" else 2]:
        run("conntrack", "-D", "-p", "tcp", "--orig-port-src", str(hidden.sport),
            "--orig-port-dst", str(port))  # fmt: skip
    if way == "nobody read":
        scene.feed(b"")
        # As half a minute later.
        scene.assigner._flows.mirror._graves = {}, {}
    window = since_s, time.monotonic()
    name = b"a:80 [ss22 >> direct] email: attacker@x\n" + true_line(flow, b"attacker@x") + b"a"
    text_of_it = FORMATS["ss-2022"][1] % (text(hidden), name)
    scene.assigner.assign(scene.scanner.scan(text_of_it), window)
    assert scene.marks(flow) != scene.marks(own)


def test_who_has_a_tuple_next_is_in_their_own_class_where_no_event_told_of_it(
    scene: Scene,
) -> None:
    """Two honest users behind one translated address, while a flood has events given up."""
    flow, other = scene.open(AWAY, VLESS), scene.open(AWAY, VLESS)
    scene.feed(true_line(flow, b"victim@x"), true_line(other, b"honest@x"))
    scene.assigner._flows._do_without("more new flows than can be followed")
    run("conntrack", "-D", "-p", "tcp", "--orig-port-src", str(flow.sport))
    begin([flow])
    for _ in range(3):
        scene.feed(true_line(flow, b"honest@x"))
        assert scene.marks(flow) == scene.marks(other)


def test_a_line_that_waited_is_of_the_flow_of_then(scene: Scene) -> None:
    """Its flow ended, and another customer had the tuple, while nobody read the log."""
    flow, other = scene.open(AWAY, VLESS), scene.open(AWAY, VLESS)
    scene.feed(true_line(other, b"honest@x"))
    now = time.monotonic()
    claims = scene.scanner.scan(true_line(flow, b"victim@x"))
    scene.assigner.assign(claims, (now - 60.0, now))
    # It may have been of the inbound that checks no names.
    scene.feed((STAMP + b" from 1.2.3.4:5 rejected  proxy/trojan: not a valid user\n") * 150)
    for _ in range(2):
        scene.feed(true_line(flow, b"honest@x"))
        assert scene.marks(flow) == scene.marks(other)


@pytest.mark.parametrize("source", [b"198.51.100.66:0", b"unix:@", b"@"])
def test_what_follows_a_line_without_a_flow_may_be_the_rest_of_its_name(
    source: bytes, scene: Scene
) -> None:
    """An inbound that checks no names behind a unix socket, or a header that a client may send."""
    own, flow = scene.open(HOME, VLESS), scene.open(AWAY, VLESS)
    scene.feed(true_line(own, b"attacker@x"))
    name = b"a:80 [ss22 >> direct] email: attacker@x\n" + true_line(flow, b"attacker@x") + b"a"
    scene.feed(FORMATS["ss-2022"][1] % (source, name))
    assert scene.marks(flow) != scene.marks(own)


def test_a_free_name_goes_on_in_the_next_file(scene: Scene) -> None:
    """The log was rotated within it, by software that splits at lines."""
    own, flow = scene.open(HOME, VLESS), scene.open(AWAY, VLESS)
    scene.feed(true_line(own, b"attacker@x"))
    scene.feed(FORMATS["ss-2022"][1] % (text(scene.open(HOME, SS2022)), b"a:80 [x] email: a"))
    scene.scanner = Scanner(position=STREAM_POSITIONS)
    scene.feed(true_line(flow, b"attacker@x"))
    assert scene.marks(flow) != scene.marks(own)
