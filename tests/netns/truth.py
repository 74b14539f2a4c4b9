"""A node and the truth about it: who really has each flow, and what was said of it by whom.

Real conntrack entries and events, the real scanner and assigner. What the world does is chosen by
numbers, so that a test may draw them from anywhere.
"""

from __future__ import annotations

import itertools
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from vff_qos.core.claims.accesslog import Scanner
from vff_qos.core.flow import Flow
from vff_qos.core.htb import OURS_MASK, PROVISIONAL
from vff_qos.core.policy.model import Limits, Policy
from vff_qos.core.settings import GcSettings, Settings
from vff_qos.follower.assign import Assigner
from vff_qos.journal import Journal
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.kernel.packed.tc import Tc
from vff_qos.lock import Lock
from vff_qos.state import State

from .entries import ESTABLISHED, begin, end
from .harness import run

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
NODE = socket.inet_aton("203.0.113.1")
#: Our ends, and the tag of the inbound at each.
ENDS = ((TCP, 443, b"vless"), (TCP, 8443, b"trojan"), (UDP, 443, b"hysteria"))
MBIT = 1_000_000
DEFAULT_BPS = 10 * MBIT
DEFAULT = Limits(DEFAULT_BPS, DEFAULT_BPS)
PLANS = {
    "poor@x": Limits(2 * MBIT, 3 * MBIT), "rich@x": Limits(50 * MBIT, 50 * MBIT),
    "blocked@x": Limits(8_000, 8_000, blocked=True),
}  # fmt: skip
#: Who lives at each of the addresses of a world.
HOMES = (("rich@x",), ("poor@x", "a@x"), ("b@x", "c@x", "rich@x"), ("blocked@x", "d@x"))
NAMES = ("poor@x", "rich@x", "blocked@x", "a@x", "b@x", "c@x", "d@x", "nobody@x")
#: Other than a user: a flow had the same end before, or its beginning was not seen.
UNCERTAIN = "an earlier flow"
OUTSIDER = b"198.51.100.66:4000"
TEACHER = socket.inet_aton("192.0.2.200")
_REASON = b"proxy/trojan: failed to read address and port > common/protocol: invalid domain name: "
#: What a name may reach, and more.
_FILLER = b"2026/11/20 15:48:00.000001 from 192.0.2.9:9 rejected  proxy/vless: not a user\n" * 4


@dataclass
class Live:
    """A flow, whose it is, and what was said of it."""

    flow: Flow
    user: str
    home: int
    tag: bytes
    #: It is older than the agent, so that the kernel does not tell of its end.
    is_old: bool = False
    #: A plain line has said the truth.
    told: bool = False
    #: The same, on a flow that was certain, so that it vouches for its user.
    witness: bool = False
    #: A line within reach of an outsider's text has, and its user was vouched for.
    vouched: bool = False
    #: Any line has said the truth since the flow began.
    named: bool = False
    #: Names in lines within reach of strangers' texts.
    doubts: set[str] = field(default_factory=set)
    #: Some of these texts came from the flow's own address.
    inside: bool = False
    #: Users of earlier flows from the same end whose last line came late, and whatever else makes
    #: a word weak.
    late: set[str] = field(default_factory=set)

    @property
    def client(self) -> tuple[bytes, int]:
        return self.flow.src, self.flow.sport


class World:
    """Every step checks nothing; `check` compares all marks with the truth."""

    def __init__(self, directory: Path) -> None:
        run("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
        self._settings = Settings(
            wan="wan0", leaf="pfifo", service_ports=((443, 443), (8443, 8443)),
            gc=GcSettings(pool_min=0),  # nothing fills it here
        )  # fmt: skip
        self._policy = Policy(DEFAULT, PLANS)
        self._directory = directory
        self._devices = socket.if_nametoindex("vffqos0"), socket.if_nametoindex("wan0")
        self._conntrack, self._tc = Conntrack(), Tc()
        self.scanner = Scanner()
        self.lines = self.restarts = 0
        self._down = False
        self._count = itertools.count()
        self._pending: list[bytes] = []
        self.live: dict[tuple[bytes, int, int, int], Live] = {}
        self._read_s = time.monotonic()
        self._assigner = self._start()
        self.begin()

    def _start(self) -> Assigner:
        assigner = Assigner(
            self._settings, self._policy, State(str(self._directory / "state")),
            Lock(str(self._directory / "run")), Journal(clock=lambda: 0.0), self._devices, [NODE],
        )  # fmt: skip
        assigner.adopt()
        return assigner

    def close(self) -> None:
        """Release what is open."""
        self._assigner.close()
        self._conntrack.close()
        self._tc.close()

    def begin(self) -> None:
        """New addresses, of which nobody knows anything."""
        number = next(self._count)
        self._net = bytes((10, number >> 8 & 255, number & 255))
        if number:
            self.feed()
            run("conntrack", "-F")
        self.live.clear()
        self._used: set[tuple[bytes, int]] = set()
        self._vouched: dict[int, set[str]] = {home: set() for home in range(len(HOMES))}
        # What was written since the agent read, by the client's end: plainly and in doubt.
        self._said: dict[tuple[bytes, int], set[str]] = {}
        self._doubted: dict[tuple[bytes, int], set[str]] = {}
        self._teachers = [
            Flow(proto, TEACHER, 1_000 + 10 * number % 50_000 + n, NODE, port)
            for n, (proto, port, _tag) in enumerate(ENDS)
        ]
        begin(self._teachers)
        self._teach()

    def _teach(self) -> None:
        """Others use all inbounds."""
        for flow, (_proto, _port, tag) in zip(self._teachers, ENDS, strict=True):
            self._pending.append(_line(flow.src, flow.sport, "teacher@x", tag))
        self.feed()

    # -- what happens -----------------------------------------------------------------------------

    def born(self, home: int, user: int, port: int, our_end: int) -> None:
        """A flow begins, if its ends are free."""
        home %= len(HOMES)
        proto, our_port, tag = ENDS[our_end % len(ENDS)]
        address = self._net + bytes((home + 1,))
        key = address, 2_000 + port, proto, our_port
        if key in self.live:
            return
        flow = Flow(proto, address, key[1], NODE, our_port)
        begin([flow])
        live = Live(flow, HOMES[home][user % len(HOMES[home])], home, tag, is_old=self._down)
        live.late = set(self._said.get(live.client, ()))
        live.doubts = set(self._doubted.get(live.client, ()))
        live.inside = bool(live.doubts)
        if live.client in self._used:
            live.late.add(UNCERTAIN)
        self._used.add(live.client)
        self.live[key] = live

    def die(self, which: int) -> None:
        """A flow ends; its last line may not have been read yet."""
        if live := self._pick(which):
            end([live.flow])
            self._forget(live)

    def _forget(self, live: Live) -> None:
        self.live = {key: other for key, other in self.live.items() if other is not live}
        for other in self.live.values():
            if other.client == live.client:
                other.late |= self._said.get(live.client, set())
                # Which of an end's flows a line meant that comes after its flow and a restart,
                # nothing tells: the tags' ends are not known yet.
                other.told &= not (self._down and other.late - {UNCERTAIN})
                other.doubts |= self._doubted.get(live.client, set())
                other.inside |= live.inside

    def reborn(self, which: int, user: int) -> None:
        """A flow ends, and another user of the address has its ends at once."""
        if live := self._pick(which):
            self.die(which)
            home, flow = live.home, live.flow
            self.born(home, user, flow.sport - 2_000, [e[:2] for e in ENDS].index(
                (flow.proto, flow.dport)))  # fmt: skip

    def honest(self, which: int) -> None:
        """The engine says whose a flow is."""
        if live := self._pick(which):
            self._pending.append(_line(*live.client, live.user, live.tag))
            self._said.setdefault(live.client, set()).add(live.user)
            live.told = live.named = True
            live.witness |= not live.late
            self._vouched[live.home].add(live.user)

    def near_text(self, which: int, inside: bool) -> None:
        """The same just after a text of a stranger, who may be at the flow's address."""
        if live := self._pick(which):
            surely = any(
                other.witness and other.user == live.user and other.home == live.home
                for other in self.live.values()
            )
            self._pending.append(_refused(_author(live, inside), b"x"))
            self._pending.append(_line(*live.client, live.user, live.tag))
            self._pending.append(_FILLER)
            self._doubted.setdefault(live.client, set()).add(live.user)
            live.doubts.add(live.user)
            live.inside |= inside
            live.named = True
            live.vouched |= surely and not inside

    def lie(self, which: int, name: int, tag: int, inside: bool) -> None:
        """A stranger has a line written that names a live flow."""
        if live := self._pick(which):
            email = NAMES[name % len(NAMES)]
            forged = _line(*live.client, email, ENDS[tag % len(ENDS)][2])
            self._pending.append(_refused(_author(live, inside), b"a\n" + forged[:-1]))
            self._pending.append(_FILLER)
            self._doubted.setdefault(live.client, set()).add(email)
            for other in self.live.values():
                if other.client == live.client:
                    other.doubts.add(email)
                    other.inside |= inside

    def lie_of_nothing(self, port: int, name: int) -> None:
        """The same with a flow that is not there."""
        forged = _line(self._net + b"\xc8", 2_000 + port, NAMES[name % len(NAMES)], b"vless")
        self._pending.append(_refused(OUTSIDER, b"a\n" + forged[:-1]))
        self._pending.append(_FILLER)

    def noise(self, text: bytes) -> None:
        """Bytes that are no line of a flow, and what ends their reach."""
        self._pending += [text.replace(b" accepted ", b" adopted "), b"\n", _FILLER * 120]

    def flush(self, keep: int) -> None:
        """Somebody empties conntrack; most flows go on, some connections do not."""
        self.feed()
        run("conntrack", "-F")
        for number, live in enumerate(list(self.live.values())):
            if number % 5 == keep % 5 and live.flow.proto == TCP:
                self._forget(live)
            elif live.is_old and live.flow.proto == UDP:
                # Without a word of its end it may have timed out: its mark is for the time being.
                live.told = live.vouched = live.witness = False
        for live in self.live.values():
            live.late.add(UNCERTAIN)
        begin([*self._teachers, *(live.flow for live in self.live.values())], ESTABLISHED)
        self._assigner.listen()

    def lose(self, *reborn: int) -> None:
        """Events are lost, and with them the ends of some flows and the beginnings of others."""
        self.feed()
        for which in reborn:
            self.reborn(which, which)
        for live in self.live.values():
            live.late.add(UNCERTAIN)
        flows = self._assigner._flows
        assert flows._events is not None
        flows._events.drain()
        self._assigner._marking.carry_out(flows.compare(lossy=True))

    def restart(self, *reborn: int) -> None:
        """The agent ends and comes back; meanwhile flows end and others begin, and are told of."""
        self.feed()
        self.restarts += 1
        self._assigner.close()
        self._down = True
        for live in self.live.values():
            live.witness, live.is_old = live.told, True
            live.late.add(UNCERTAIN)
        for which in reborn:
            self.reborn(which, which)
            told = self._pick(which + 1)
            # Which of an end's flows a line means, the tags tell, and nobody knows them yet.
            if told and [live.client for live in self.live.values()].count(told.client) == 1:
                self.honest(which + 1)
        self._assigner = self._start()
        self._down = False
        self._teach()

    def feed(self) -> None:
        """The agent reads what was written."""
        block = b"".join(self._pending)
        self._pending.clear()
        self._said.clear()
        self._doubted.clear()
        self.lines += block.count(b"\n")
        claims = self.scanner.scan(block)
        now = time.monotonic()
        self._assigner.assign(claims, (self._read_s, now), time.time() - now)
        self._read_s = now

    def _pick(self, which: int) -> Live | None:
        flows = list(self.live.values())
        return flows[which % len(flows)] if flows else None

    # -- what must hold ---------------------------------------------------------------------------

    def check(self) -> None:
        """No flow is in a class that nothing but a lie has brought it into."""
        self.feed()
        flows = list(self.live.values())
        marks = self._conntrack.get_marks([prepare(live.flow) for live in flows])
        for live, mark in zip(flows, marks, strict=True):
            assert mark is not None, f"{live} has gone"
            assert mark == 0 or mark & OURS_MASK == 0x51000000, f"{live} bears {mark:#x}"
            owner = self._assigner._registry.owner(mark & 0xFFFF)
            self._check(live, mark, owner.key if mark and owner else "")

    def _check(self, live: Live, mark: int, holder: str) -> None:
        said = f"{live} is in the class of {holder!r} ({mark:#x})"
        assert bool(mark) == bool(holder), said
        if live.told:
            assert (holder, mark & PROVISIONAL) == (live.user, 0), said
        lies = live.doubts & self._vouched[live.home] - {live.user}
        if live.vouched and not lies and not live.late:
            assert holder == live.user, said
        if not holder or holder == live.user:
            return
        if mark & PROVISIONAL:
            assert live.flow.proto == UDP and holder in HOMES[live.home], said
        elif holder < " ":
            assert live.doubts, said
            plans = [PLANS.get(live.user, DEFAULT)]
            if live.inside or not live.named:
                # Whoever shares the address may be who wrote it, and before the flow's own line
                # any name may be the truth: all that were named count.
                named = (PLANS.get(name, DEFAULT) for name in live.doubts)
                plans += [plan for plan in named if not plan.blocked]
            for way, index in enumerate(self._devices):
                ceil_bps = self._tc.classes(index, 0x5100)[mark & 0xFFFF].params.ceil_bps
                limits = [DEFAULT_BPS, *(plan[way] for plan in plans)]
                floor = min(limit for limit in limits if isinstance(limit, int))
                assert floor <= ceil_bps <= DEFAULT_BPS, (said, ceil_bps)
        else:
            # Text cannot tell two users of one address apart when a stranger names the other
            # one first; nor a late line of the end's flow before.
            assert holder in lies or holder in live.late, said


def _line(address: bytes, port: int, email: str, tag: bytes) -> bytes:
    now = time.time()
    stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now))
    return b"%s.%06d from %s:%d accepted tcp:a.example:443 [%s >> direct] email: %s\n" % (
        stamp.encode(), int(now % 1 * 1e6), socket.inet_ntoa(address).encode(), port, tag,
        email.encode(),
    )  # fmt: skip


def _refused(author: bytes, name: bytes) -> bytes:
    return b"2026/11/20 15:48:00.448421 from %s rejected  %s%s\n" % (author, _REASON, name)


def _author(live: Live, inside: bool) -> bytes:
    return b"%s:4000" % socket.inet_ntoa(live.flow.src).encode() if inside else OUTSIDER
