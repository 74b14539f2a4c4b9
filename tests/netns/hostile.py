"""A node whose log strangers write into, and what they write."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

from bench.world import NODE, make_some_flows
from vff_qos.core.claims.accesslog import Scanner
from vff_qos.core.flow import Flow
from vff_qos.core.policy.model import Limits, Policy
from vff_qos.core.settings import GcSettings, Settings
from vff_qos.follower.assign import Assigner
from vff_qos.journal import Journal
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.kernel.packed.tc import Tc
from vff_qos.lock import Lock
from vff_qos.state import State

from .harness import run

VLESS, TROJAN, SS2022 = 443, 2053, 8388
STAMP = b"2026/11/20 15:48:00.448421"
ATTACKERS_UP_BPS, ATTACKERS_DOWN_BPS = 1_000_000, 2_000_000
ATTACKERS = Limits(ATTACKERS_UP_BPS, ATTACKERS_DOWN_BPS)
DEFAULT_BPS = 10_000_000
POLICY = Policy(
    Limits(DEFAULT_BPS, DEFAULT_BPS),
    {"attacker@x": ATTACKERS, "victim@x": Limits(50_000_000, 50_000_000)},
)
HOME = socket.inet_aton("198.51.100.7")  # the attacker's address
NAT = HOME  # a victim may sit behind the same one
AWAY = socket.inet_aton("203.0.113.77")


def text(flow: Flow) -> bytes:
    return b"%s:%d" % (socket.inet_ntoa(flow.src).encode(), flow.sport)


def true_line(flow: Flow, email: bytes, tag: bytes = b"vless-in") -> bytes:
    return STAMP + b" from %s accepted tcp:a.example:443 [%s >> direct] email: %s\n" % (
        text(flow), tag, email,
    )  # fmt: skip


#: How each inbound prints a name: (port, line; %(src)s and %(name)s).
FORMATS = {
    "ss-2022": (SS2022, STAMP + b" from %s accepted tcp:%s:80 [ss22 >> direct] "
                b"email: attacker@x\n"),
    "trojan": (TROJAN, STAMP + b" from %s rejected  proxy/trojan: failed to read address and port"
               b" > common/protocol: invalid domain name: %s\n"),
    "shadowsocks": (TROJAN, STAMP + b" from %s rejected  proxy/shadowsocks: invalid domain "
                    b"name: %s\n"),
    "dnsLog": (VLESS, STAMP + b" UDP:%s got answer: %s. -> [192.0.2.55] 1.37ms\n"),
}  # fmt: skip


class Scene:
    """A node with two victims and an attacker; every attack uses new flows."""

    def __init__(self, directory: Path) -> None:
        run("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
        conf = Settings(
            wan="wan0", leaf="pfifo", free_text_ports=((SS2022, SS2022),),
            service_ports=((VLESS, VLESS), (TROJAN, TROJAN), (SS2022, SS2022)),
            # Nothing fills a pool here, and half of it would be kept for users.
            gc=GcSettings(pool_min=0),
        )  # fmt: skip
        self.devices = socket.if_nametoindex("vffqos0"), socket.if_nametoindex("wan0")
        self.conntrack, self.tc = Conntrack(), Tc()
        self.conf, self.directory = conf, directory
        self.assigner = self.start()
        self.scanner = Scanner()
        self._ports = itertools.count(1024)
        self.far = self.open(AWAY, VLESS)
        self.near = self.open(NAT, VLESS)
        self.feed(true_line(self.far, b"victim@x"), true_line(self.near, b"victim@x"))
        self.victims = self.marks(self.far, self.near)
        assert all(self.victims)

    def start(self, policy: Policy = POLICY) -> Assigner:
        """An agent that knows what state and kernel know."""
        assigner = Assigner(
            self.conf, policy, State(str(self.directory / "state")),
            Lock(str(self.directory / "run")), Journal(clock=lambda: 0.0), self.devices,
            [NODE],
        )  # fmt: skip
        assigner.adopt()
        return assigner

    def open(self, address: bytes, port: int) -> Flow:
        flow = Flow(6, address, next(self._ports) % 60_000 + 1_024, NODE, port)
        make_some_flows([flow])
        return flow

    def feed(self, *lines: bytes) -> None:
        self.assigner.assign(self.scanner.scan(b"".join(lines)))

    def marks(self, *flows: Flow) -> list[int | None]:
        return self.conntrack.get_marks([prepare(flow) for flow in flows])

    def limits(self, flow: Flow) -> list[int]:
        """Ceil on (IFB, WAN) of the class that a flow's mark names; node's speed without one."""
        minor = (self.marks(flow)[0] or 0xFFFE) & 0xFFFF
        return [self.tc.classes(index, 0x5100)[minor].params.ceil_bps for index in self.devices]
