"""Configurations of the real engine: one server on the node, one client for all devices."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import network
from .progress import LabError
from .users import PORTS, VLESS_RANGE, Device, Protocol, User
from .users import devices as number

Config = dict[str, Any]

SS_METHOD, VMESS_SECURITY = "chacha20-ietf-poly1305", "chacha20-poly1305"
ECHO_PORT = 7
# An overloaded emulated node must not cut connections for being slow.
PATIENCE: Config = {"levels": {"0": {"handshake": 30, "connIdle": 600}}}
TLS_NAME = "node.lab"


def unit(name: str, *lines: str) -> str:
    """A systemd unit of an engine, with these lines of its [Service]."""
    text = "\n".join(lines)
    # Nice: emulated, its processors are scarce; what is measured is shaping, not who waits for one.
    return f"""\
[Unit]
Description={name} (lab)
After=network-online.target lab-net.service
Wants=network-online.target

[Service]
{text}
Restart=on-failure
RestartSec=2
LimitNOFILE=65536
Nice=-10

[Install]
WantedBy=multi-user.target
"""


SERVER_UNIT = unit(
    "Xray",
    "Type=notify",
    "NotifyAccess=all",
    "User=xray",
    "LogsDirectory=xray",
    "LogsDirectoryMode=0750",
    "AmbientCapabilities=CAP_NET_BIND_SERVICE",
    "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
    "Environment=PYTHONPATH=/opt/xray",
    "ExecStart=/usr/bin/python3 /opt/lab/engine.py /etc/xray/config.json",
)


def server(users: Sequence[User]) -> Config:
    """The node's config: an inbound for each protocol, VLESS on a range of ports as well.

    For whoever has a port of their own it does what a port forward does.
    """
    listeners: list[tuple[str, Protocol, int | str]] = [
        *((f"{protocol}-in", protocol, port) for protocol, port in PORTS.items()),
        ("vless-range-in", "vless", f"{VLESS_RANGE[0]}-{VLESS_RANGE[1]}"),
    ]
    forwards = [
        {
            "tag": f"forward-{device.number}-{remote}",
            "listen": "::",
            "port": device.user.server_port + offset,
            "protocol": "dokodemo-door",
            "settings": {"address": network.TARGET_IPV4, "port": remote, "network": "tcp"},
        }
        for device in number(users)
        if device.user.engine == "port"
        for offset, remote in enumerate((device.target_port, ECHO_PORT))
    ]
    return {
        "log": {
            "loglevel": "warning",
            "access": "/var/log/xray/access.log",
            "error": "/var/log/xray/error.log",
        },
        "inbounds": [
            {
                "tag": tag,
                "listen": "::",
                "port": port,
                "protocol": protocol,
                "settings": _inbound_settings(protocol, users),
                **_tls_server(protocol),
            }
            for tag, protocol, port in listeners
        ]
        + forwards,
        "policy": PATIENCE,
        # The targets have documentation addresses, which the engine would refuse on its own.
        "outbounds": [
            {
                "tag": "direct",
                "protocol": "freedom",
                "settings": {"finalRules": [{"action": "allow"}]},
            }
        ],
    }


def client(devices: Sequence[Device], fingerprint: str) -> Config:
    """The clients' config: for each device, local ports that lead through its own tunnel.

    `fingerprint` is the SHA-256 (hex) of the server's certificate.
    """
    inbounds, outbounds, rules = [], [], []
    for device in devices:
        tag, user = device.uplink, device.user
        if user.engine == "hysteria":
            continue  # has a client of its own
        # As most devices of customers, whatever this machine has as its default.
        link = {"interface": tag, "tcpcongestion": "cubic"}
        for offset, (local, remote) in enumerate(
            ((device.target_port, device.target_port), (device.echo_port, ECHO_PORT))
        ):
            target = {"address": network.TARGET_IPV4, "port": remote, "network": "tcp,udp"}
            way = f"{tag}-{remote}" if user.engine == "port" else tag
            inbounds.append(
                {
                    "tag": f"{tag}-{remote}",
                    "listen": "127.0.0.1",
                    "port": local,
                    "protocol": "dokodemo-door",
                    "settings": target,
                }
            )
            rules.append({"inboundTag": [f"{tag}-{remote}"], "outboundTag": way})
            if user.engine == "port":
                there = f"{network.NODE_IPV4}:{user.server_port + offset}"
                outbounds.append(
                    {
                        "tag": way,
                        "protocol": "freedom",
                        "settings": {"redirect": there, "finalRules": [{"action": "allow"}]},
                        "streamSettings": {"sockopt": link},
                    }
                )
        if user.engine != "port":
            outbounds.append(
                {
                    "tag": tag,
                    "protocol": user.protocol,
                    "settings": _outbound_settings(user),
                    "streamSettings": {"sockopt": link, **_tls_client(user.protocol, fingerprint)},
                }
            )
    return {
        "log": {"loglevel": "warning", "access": "none"},
        "policy": PATIENCE,
        "inbounds": inbounds,
        "outbounds": outbounds,
        "routing": {"rules": rules},
    }


def certificate(folder: Path) -> str:
    """Make key.pem and a self-signed cert.pem in `folder`; return the latter's SHA-256 in hex."""
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 3650"
    done = subprocess.run(
        [*command.split(), "-subj", f"/CN={TLS_NAME}"]
        + ["-addext", f"subjectAltName=DNS:{TLS_NAME}"]
        + ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise LabError("openssl failed: " + " | ".join(done.stderr.strip().splitlines()))
    der = ssl.PEM_cert_to_DER_cert((folder / "cert.pem").read_text())
    return hashlib.sha256(der).hexdigest()


def _inbound_settings(protocol: Protocol, users: Sequence[User]) -> Config:
    ours = [user for user in users if user.protocol == protocol and user.engine == "xray"]
    if protocol == "vless":
        clients = [{"id": user.id, "email": user.email} for user in ours]
        return {"clients": clients, "decryption": "none"}
    if protocol == "vmess":
        return {"clients": [{"id": user.id, "email": user.email} for user in ours]}
    if protocol == "trojan":
        return {"clients": [{"password": user.password, "email": user.email} for user in ours]}
    return {
        "clients": [
            {"method": SS_METHOD, "password": user.password, "email": user.email} for user in ours
        ],
        "network": "tcp,udp",
    }


def _outbound_settings(user: User) -> Config:
    address = network.NODE_IPV6 if user.ipv6 else network.NODE_IPV4
    where = {"address": address, "port": user.server_port}
    if user.protocol == "vless":
        return {"vnext": [{**where, "users": [{"id": user.id, "encryption": "none"}]}]}
    if user.protocol == "vmess":
        return {"vnext": [{**where, "users": [{"id": user.id, "security": VMESS_SECURITY}]}]}
    secret = {"password": user.password}
    if user.protocol == "shadowsocks":
        secret["method"] = SS_METHOD
    return {"servers": [{**where, **secret}]}


def _tls_server(protocol: Protocol) -> Config:
    if protocol != "trojan":
        return {}
    certificate = {"certificateFile": "/etc/xray/cert.pem", "keyFile": "/etc/xray/key.pem"}
    return {
        "streamSettings": {
            "network": "tcp",
            "security": "tls",
            "tlsSettings": {"certificates": [certificate]},
        }
    }


def _tls_client(protocol: Protocol, fingerprint: str) -> Config:
    if protocol != "trojan":
        return {}
    settings = {"serverName": TLS_NAME, "pinnedPeerCertSha256": fingerprint}
    return {"network": "tcp", "security": "tls", "tlsSettings": settings}
