"""The Internet as the node sees it: namespaces of this machine behind the node's WAN device.

    clients (up1, up2, ...: one link for each device) -- inet (router, targets) -- wan0 of the node

Only the node is emulated. All devices share the namespace `clients` and one engine process; each
has its own link, addresses and routes. `wan0` has the node's default routes, so that both legs of
a proxied connection use it. The management interface (eth0) carries SSH only.
"""

from __future__ import annotations

from collections.abc import Sequence

from .users import Device

WAN = "wan0"
#: The other end of the node's WAN device, in the namespace `inet`.
TAP = "node0"
# IPv6 is of the private kind: the engine refuses VLESS without TLS to a public server.
NODE_IPV4, INET_IPV4 = "203.0.113.2", "203.0.113.1"
NODE_IPV6, INET_IPV6 = "fd00:1ab:1::2", "fd00:1ab:1::1"
TARGET_IPV4, TARGET_IPV6 = "192.0.2.10", "fd00:1ab:3::10"
#: TCP sends as to somebody far away.  Behind round trips below a millisecond it makes packets of 32
#: to 64 KiB whatever its rate (tcp_tso_rtt_log, Documentation/networking/ip-sysctl.rst): half a
#: second of 1 Mbit/s, longer than a turn in HTB, and CoDel drops them whole.  Kernels before 5.18
#: neither do that nor have the setting.
FAR_TCP = "net.ipv4.tcp_tso_rtt_log"
_MAX_SEGMENTS = 44  # the kernel's 64 KiB
_FAST_BPS = 10_000_000
_LINE_BURST, _LINE_LATENCY = "20kb", "50ms"

NODE_UNIT = """\
[Unit]
Description=WAN device of the lab
Before=network-online.target
After=lab-mgmt.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip -batch /etc/lab/wan

[Install]
WantedBy=multi-user.target network-online.target
"""


def node_batch() -> str:
    """What brings the node's WAN device up, as input of `ip -batch`."""
    commands = [
        f"link set eth1 name {WAN}",
        *_device(WAN, f"{NODE_IPV4}/24", f"{NODE_IPV6}/64"),
        *_routes(WAN, INET_IPV4, INET_IPV6, metric=1),
    ]
    return "\n".join(commands) + "\n"


def inet_script(devices: Sequence[Device], clients_pid: int) -> str:
    """A shell script that builds the router; `clients_pid` is a process in the other namespace."""
    links = [
        *_device("lo", f"{TARGET_IPV4}/32", f"{TARGET_IPV6}/128"),
        *_device(TAP, f"{INET_IPV4}/24", f"{INET_IPV6}/64"),
    ]
    for device in devices:
        port, uplink = device.router_port, device.uplink
        links.append(f"link add {port} type veth peer name {uplink} netns {clients_pid}")
        links += _device(port, f"{device.ipv4_router}/30", f"{device.ipv6_router}/64")
    script = [
        _batch("ip", links),
        lines_script(devices),
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        _datagram_counters(devices),
    ]
    return "\n".join(script) + "\n"


def lines_script(devices: Sequence[Device], factor: float | None = None) -> str:
    """Make each device's line to it `factor` times as fast as its share of the user's download
    limit; None: as fast as this machine.

    Sources with a set rate would do for a limit that is lifted, but they make up for what they
    could not send: for seconds they send at many times their rates.
    """
    queues = []
    for device in devices:
        limit_bps = device.user.download
        if factor is None or limit_bps is None:
            # It never fills: it is there to count wire bytes (veth has no queue of its own).
            kind = "pfifo limit 10000"
        else:
            rate_bps = int(limit_bps * factor / device.user.devices)
            kind = f"tbf rate {rate_bps} burst {_LINE_BURST} latency {_LINE_LATENCY}"
        queues.append(f"qdisc replace dev {device.router_port} root {kind}")
    return _batch("tc", queues)


def clients_script(devices: Sequence[Device]) -> str:
    """A shell script that gives every device its addresses and routes."""
    commands = ["link set lo up"]
    for device in devices:
        uplink = device.uplink
        commands += _device(uplink, f"{device.ipv4}/30", f"{device.ipv6}/64")
        commands.append(f"link set {uplink} gso_max_segs {_segments(device)}")
        # Every device has default routes of its own: its sockets are bound to its link.
        commands += _routes(uplink, device.ipv4_router, device.ipv6_router, metric=device.number)
    return _batch("ip", commands) + "\n"


def _segments(device: Device) -> int:
    """How many segments the device may send in one piece: 10 ms of a slow user's upload.

    Links of a virtual network have no speed: a piece would have 64 KiB, which takes a user of 1
    Mbit/s half a second.  What a network card receives comes in pieces that fit the sender's rate.
    Fast users keep large pieces, which cost the emulated node least.
    """
    limit_bps = device.user.upload
    if limit_bps is None or limit_bps >= _FAST_BPS:
        return _MAX_SEGMENTS
    return max(limit_bps // 1_200_000, 2)


def _datagram_counters(devices: Sequence[Device]) -> str:
    """Count the datagrams that reach each device's target: UDP sockets have no byte counter."""
    ports = ", ".join(f'{device.target_port} : "{device.router_port}"' for device in devices)
    rules = [
        "table inet lab {",
        *(f"counter {device.router_port} {{}}" for device in devices),
        "chain input {",
        "type filter hook input priority 0",
        f"counter name udp dport map {{ {ports} }}",
        "}",
        "}",
    ]
    return "\n".join(["nft -f - <<END", *rules, "END"])


def _device(name: str, ipv4: str, ipv6: str) -> list[str]:
    return [
        f"address add {ipv4} dev {name}",
        f"address add {ipv6} dev {name} nodad",
        f"link set {name} up",
    ]


def _routes(name: str, ipv4: str, ipv6: str, metric: int) -> list[str]:
    return [f"route add default via {router} dev {name} metric {metric}" for router in (ipv4, ipv6)]


def _batch(command: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{command} -batch - <<END", *lines, "END"])
