"""Who uses the lab node, from which devices, with which limits."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["vless", "vmess", "trojan", "shadowsocks", "hysteria2", "tcp"]
#: ``port``: a port of their own, which is forwarded.
Engine = Literal["xray", "sing-box", "hysteria", "port"]
Direction = Literal["download", "upload"]
DIRECTIONS: tuple[Direction, Direction] = ("download", "upload")

KBIT, MBIT = 1_000, 1_000_000
DEFAULT_DOWNLOAD, DEFAULT_UPLOAD = 3 * MBIT, 2 * MBIT

# Inbound of each protocol; VLESS has further ports within a range of service ports.
PORTS: dict[Protocol, int] = {"vless": 443, "vmess": 8443, "trojan": 2053, "shadowsocks": 8388}
VLESS_RANGE = (20040, 20049)
SERVICE_PORTS: tuple[int | str, ...] = (*PORTS.values(), "20000-20100")


@dataclass(frozen=True)
class User:
    """A customer of the node. Rates are bit/s of wire bytes.

    `default` says that the node's settings do not name this user, so the default limits hold.
    `offered` caps what the source sends, in bit/s per device and direction; None is "all it can",
    and for UDP half as much again as the limit.
    """

    email: str
    protocol: Protocol
    download: int | None  # None: unlimited
    upload: int | None
    devices: int = 1
    flows: int = 1  # of each device
    ipv6: bool = False  # between client and node
    udp: bool = False  # what is measured is UDP inside and, with Shadowsocks, outside
    default: bool = False
    offered: int | None = None
    block_s: float = 0.1  # of what is offered, written at once: long blocks spare emulated nodes
    port: int | None = None  # None: the protocol's own port
    engine: Engine = "xray"  # of the node; clients are Xray's but for Hysteria's own

    @property
    def id(self) -> str:
        """Credential of VLESS and VMess."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, self.email))

    @property
    def password(self) -> str:
        """Credential of Trojan and Shadowsocks."""
        return f"password of {self.email}"

    @property
    def server_port(self) -> int:
        return self.port or PORTS[self.protocol]

    def limit(self, direction: Direction) -> int | None:
        """The limit in bit/s, None if there is none."""
        return self.download if direction == "download" else self.upload

    def source_rate(self, direction: Direction) -> int | None:
        """What each of the user's devices sends at most, in bit/s; None is "all it can"."""
        limit = self.limit(direction)
        if self.offered is None and self.udp and limit is not None:
            return limit * 3 // 2 // self.devices
        return self.offered


@dataclass(frozen=True)
class Device:
    """One client machine: a link with its own addresses. `number` starts at 1."""

    number: int
    user: User

    @property
    def router_port(self) -> str:
        """The link's end in the namespace `inet`."""
        return f"c{self.number}"

    @property
    def uplink(self) -> str:
        """The link's end in the namespace `clients`."""
        return f"up{self.number}"

    @property
    def ipv4(self) -> str:
        return f"198.51.100.{4 * self.number + 2}"

    @property
    def ipv4_router(self) -> str:
        return f"198.51.100.{4 * self.number + 1}"

    @property
    def ipv6(self) -> str:
        return f"fd00:1ab:2:{self.number:x}::2"

    @property
    def ipv6_router(self) -> str:
        return f"fd00:1ab:2:{self.number:x}::1"

    @property
    def target_port(self) -> int:
        """The device's own iperf3 server, both behind the tunnel and at its local end."""
        return 5200 + self.number

    @property
    def echo_port(self) -> int:
        """The local end of the device's tunnel to the echo server."""
        return 5400 + self.number


CLIENTS_IPV4 = "198.51.100.0/24"
MAX_DEVICES = 60  # in blocks of four


def devices(users: Sequence[User]) -> list[Device]:
    """Number the devices of all users."""
    owners = [user for user in users for _ in range(user.devices)]
    if len(owners) > MAX_DEVICES:
        raise ValueError(f"{len(owners)} devices; the lab has addresses for {MAX_DEVICES}")
    return [Device(number, user) for number, user in enumerate(owners, 1)]


# One user is fast. The others are slow: what they cost the emulated node counts in packets, of
# which a slow user has smaller ones, and datagrams cost most.
USERS: tuple[User, ...] = (
    User("alice@lab", "vless", 50 * MBIT, 8 * MBIT),
    User("bob@lab", "vmess", 2 * MBIT, 3 * MBIT),
    User("carol@lab", "trojan", 2 * MBIT, 1 * MBIT),
    User("dave@lab", "shadowsocks", 2 * MBIT, 1 * MBIT),
    User("erin@lab", "vless", 4 * MBIT, 3 * MBIT, devices=2, flows=8),
    User("frank@lab", "vless", 2 * MBIT, 1 * MBIT, ipv6=True),
    User("grace@lab", "shadowsocks", 1 * MBIT, 1 * MBIT, udp=True),
    User("heidi@lab", "vless", DEFAULT_DOWNLOAD, DEFAULT_UPLOAD, default=True, port=20042),
    User("ivan@lab", "vmess", 1 * MBIT, 1 * MBIT),
    User("judy@lab", "vless", None, None, offered=4 * MBIT),
)

#: With one on each other engine, and one with a port of their own (and another for round trips).
DEMO_USERS = (
    *USERS,
    User("sam@lab", "vless", 2 * MBIT, 1 * MBIT, port=20060, engine="sing-box"),
    User("hugo@lab", "hysteria2", 2 * MBIT, 1 * MBIT, port=20070, engine="hysteria"),
    User("service:tunnel", "tcp", 2 * MBIT, 1 * MBIT, port=20190, engine="port"),
)
#: Xray's log as a source, and programs that post whose a flow is: our hooks.
LOG_SOURCE = {"type": "file", "path": "/var/log/xray/access.log"}
FLOWS_SOURCE = {"type": "flows", "listen": "unix:/run/vff-qos-flows.sock", "group": "vff-qos-hooks"}
#: Where sing-box tells of its connections, and to whom.
SING_BOX_API, SING_BOX_SECRET = ("127.0.0.1", 9091), "secret-of-the-lab"
SING_BOX_SECRET_FILE = "/etc/sing-box/secret"
#: Where clients of Hysteria hop, and what its server asks.
HOP, HOOKS_TOKEN = "20071-20090", "0123456789abcdef"
HYSTERIA_HOOK = f"http://127.0.0.1:8014/{HOOKS_TOKEN}/hysteria"


def role_variables(users: Sequence[User] = USERS) -> dict[str, object]:
    """The role's variables that put these users' limits in force."""
    policy: dict[str, object] = {}
    services: dict[str, object] = {}
    for user in users:
        if user.default:
            continue
        if user.engine == "port":
            services[user.email.partition(":")[2]] = {
                "ports": [f"{user.server_port}-{user.server_port + 1}"],
                "protocol": "tcp",
                "upload": _rate(user.upload or 0),
                "download": _rate(user.download or 0),
            }
            continue
        if user.download is None or user.upload is None:
            policy[user.email] = {"unlimited": True}
        else:
            policy[user.email] = {"upload": _rate(user.upload), "download": _rate(user.download)}
    found: dict[str, object] = {
        "qos_service_ports": list(SERVICE_PORTS),
        # The emulated node needs many times as long for everything, more under traffic.
        "qos_confirm_sec": 600,
        "qos_xray_access_log_path": "/var/log/xray/access.log",
        "qos_upload_default": _rate(DEFAULT_UPLOAD),
        "qos_download_default": _rate(DEFAULT_DOWNLOAD),
        "qos_users": policy,
    }
    if any(user.engine != "xray" for user in users):
        found |= _engines(users) | {"qos_services": services}
        del found["qos_xray_access_log_path"]  # the list stands in its place
    return found


def _engines(users: Sequence[User]) -> dict[str, object]:
    """The role's variables for a node with all engines, each with its own source."""
    hysteria = [user for user in users if user.engine == "hysteria"]
    return {
        "qos_sources": [
            LOG_SOURCE,
            {
                "type": "singbox",
                "address": f"{SING_BOX_API[0]}:{SING_BOX_API[1]}",
                "secret_file": SING_BOX_SECRET_FILE,
            },
            FLOWS_SOURCE,
        ],
        # Each name is one person, whatever they come by.
        "qos_same_names": True,
        "qos_hop": {HOP: hysteria[0].server_port},
        "qos_hooks_enable": True,
        "qos_hooks_token": HOOKS_TOKEN,
        "qos_hooks_users": {user.email: user.password for user in hysteria},
    }


def _rate(bits: int) -> str:
    return f"{bits // MBIT}mbit" if bits % MBIT == 0 else f"{bits // KBIT}kbit"
