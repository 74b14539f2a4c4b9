"""Fronts on the node: HAProxy, nginx and the engine's own fallback, each the real one.

A front ends the clients' connections and makes its own to the engine.  With the PROXY protocol the
engine names the client's end, and the client's connection to the front is what gets the mark;
without it nobody can be limited, and that is said."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import engine, network
from lab.users import MBIT, Device, User, devices
from vff_qos.core.flow import Flow

from .engine_node import EngineNode
from .harness import eventually, look, status

PORT = 443
#: A busy machine may take so long; how fast a mark comes is for the bench to say.
WITHIN_S = 10.0
#: The engine's own ports behind the front, and the names by which clients ask for them (SNI).
INNER = {"vless": 9443, "trojan": 9444}
NAMES = {"vless": "one.node.lab", "trojan": "two.node.lab"}
PEOPLE = (
    User("alice@lab", "vless", 50 * MBIT, 25 * MBIT, port=PORT),
    User("carol@lab", "trojan", 8 * MBIT, 4 * MBIT, port=PORT),
    User("frank@lab", "vless", 20 * MBIT, 3 * MBIT, ipv6=True, port=PORT),
)

HAPROXY = """
global
  maxconn 200
defaults
  mode tcp
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend tls
  bind {ipv4}:443
  bind {ipv6}:443
  tcp-request inspect-delay 10s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend one if {{ req.ssl_sni -i one.node.lab }}
  default_backend two
backend one
  server inner 127.0.0.1:9443 {proxy}
backend two
  server inner 127.0.0.1:9444 {proxy}
"""
NGINX = """
load_module {modules}/ngx_stream_module.so;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ }}
stream {{
  map $ssl_preread_server_name $inner {{ one.node.lab 127.0.0.1:9443; default 127.0.0.1:9444; }}
  server {{
    listen {ipv4}:443;
    listen [{ipv6}]:443;
    ssl_preread on;
    proxy_pass $inner;
    {proxy}
  }}
}}
"""
NGINX_MODULES = "/usr/lib/nginx/modules"

pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        importlib.util.find_spec("xray") is None, reason="needs the engine of tests/lab/xray.txt"
    ),
]


class FrontNode(EngineNode):
    """A node whose clients all come to port 443."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.configure("file", service_ports=[PORT])

    def start_haproxy(self, proxy: bool) -> None:
        """SNI on 443, one engine port for each name; ``proxy``: with the PROXY protocol, v2."""
        config = self.directory / "haproxy.cfg"
        options = "send-proxy-v2" if proxy else ""
        config.write_text(
            HAPROXY.format(ipv4=network.NODE_IPV4, ipv6=network.NODE_IPV6, proxy=options)
        )
        self._start_front("haproxy", "-db", "-f", str(config))

    def start_nginx(self, proxy: bool) -> None:
        """The same by nginx's stream module, which speaks version 1 of the protocol."""
        config = self.directory / "nginx.conf"
        config.write_text(
            NGINX.format(
                ipv4=network.NODE_IPV4,
                ipv6=network.NODE_IPV6,
                proxy="proxy_protocol on;" if proxy else "",
                modules=NGINX_MODULES,
                directory=self.directory,
            )
        )
        self._start_front("nginx", "-c", str(config), "-e", f"{self.directory}/nginx.log")

    def _start_front(self, name: str, *options: str) -> None:
        program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, f"{name} is missing: make setup installs it"
        self.engines.append(subprocess.Popen([program, *options]))
        for family in ("-4", "-6"):
            listening = ["ss", family, "-Hltn", f"sport = :{PORT}"]
            eventually(lambda command=listening: subprocess.check_output(command), 10)

    def arrive(self, device: Device) -> set[Flow]:
        """One more connection of a device; its connections to the front.

        They are told apart from others by when they come, without anybody's word.
        """
        before = self.to_front()
        self.talk(device)
        return self.to_front() - before

    def to_front(self) -> set[Flow]:
        """All connections from clients to the port that the node shows to the world."""
        ours = {_packed(network.NODE_IPV4), _packed(network.NODE_IPV6)}
        return {flow for flow in self.flows() if flow.dport == PORT and flow.dst in ours}


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[FrontNode]:
    made = FrontNode(tmp_path)
    try:
        made.link()
        yield made
    finally:
        made.close()


def behind_a_front(proxy: bool) -> engine.Config:
    """The engine's config with both inbounds on loopback, TLS of their own."""
    config = engine.server(PEOPLE)
    by_protocol = {inbound["protocol"]: inbound for inbound in reversed(config["inbounds"])}
    tls = by_protocol["trojan"]["streamSettings"]
    config["inbounds"] = []
    for protocol, port in INNER.items():
        stream = {**copy.deepcopy(tls), "sockopt": {"acceptProxyProtocol": proxy}}
        inbound = {**by_protocol[protocol], "listen": "127.0.0.1", "port": port}
        config["inbounds"].append({**inbound, "streamSettings": stream})
    return config


def with_fallback(xver: int) -> engine.Config:
    """VLESS on 443; whatever is none goes on to Trojan on loopback, with the client's address."""
    config = behind_a_front(proxy=xver > 0)
    outer, inner = config["inbounds"]
    outer |= {"listen": "::", "port": PORT}
    del outer["streamSettings"]["sockopt"]
    outer["settings"]["fallbacks"] = [{"dest": INNER["trojan"], "xver": xver}]
    # The outer one has undone the TLS.
    inner["streamSettings"] = {"network": "tcp", "sockopt": {"acceptProxyProtocol": xver > 0}}
    return config


def clients(fingerprint: str) -> engine.Config:
    """Everybody speaks TLS to 443, and asks for the name of their protocol."""
    config = engine.client(devices(PEOPLE), fingerprint)
    for outbound in config["outbounds"]:
        name = NAMES[outbound["protocol"]]
        pinned = {"serverName": name, "pinnedPeerCertSha256": fingerprint}
        outbound["streamSettings"] |= {"network": "tcp", "security": "tls", "tlsSettings": pinned}
    return config


Front = Callable[[FrontNode], None]


def haproxy(node: FrontNode) -> None:
    node.serve(behind_a_front(proxy=True))
    node.start_haproxy(proxy=True)


def nginx(node: FrontNode) -> None:
    node.serve(behind_a_front(proxy=True))
    node.start_nginx(proxy=True)


def fallback(node: FrontNode) -> None:
    node.serve(with_fallback(xver=2))


@pytest.mark.parametrize("front", [haproxy, nginx, fallback])
def test_who_comes_through_a_front_with_the_proxy_protocol_is_limited(
    node: FrontNode, front: Front
) -> None:
    front(node)
    node.start()
    check_all_people(node)


def test_the_webhook_names_clients_behind_a_front_as_well(node: FrontNode) -> None:
    hook = f"{node.directory}/hook.sock"
    node.configure("webhook", service_ports=[PORT], webhook_listen=f"unix:{hook}")
    node.start()
    rule = {"type": "field", "network": "tcp,udp", "outboundTag": "direct",
            "webhook": {"url": f"{hook}:/"}}  # fmt: skip
    told = {"log": {"access": "none"}, "routing": {"rules": [rule]}}
    node.serve({**behind_a_front(proxy=True), **told})
    node.start_haproxy(proxy=True)
    check_all_people(node)


def check_all_people(node: FrontNode) -> None:
    """All come twice; each connection to the front gets its user's class, and no other gets any."""
    node.connect(clients(node.fingerprint))
    found: dict[str, set[int]] = {person.email: set() for person in PEOPLE}
    for device in devices(PEOPLE) * 2:
        (flow,) = node.arrive(device)
        eventually(lambda flow=flow: node.mark_of(flow), WITHIN_S)
        found[device.user.email].add(node.mark_of(flow))
    up, down = node.classes()
    minors = set()
    for person in PEOPLE:
        (mark,) = found[person.email]
        minors.add(minor := mark & 0xFFFF)
        assert (up[minor], down[minor]) == (person.upload, person.download)
    assert len(minors) == len(PEOPLE)
    # What the front says to the engine is nobody's.
    others = {flow: mark for flow, mark in node.flows().items() if flow.dport != PORT}
    assert {flow.dport for flow in others} & set(INNER.values())
    assert not any(others.values())


def plain_haproxy(node: FrontNode) -> None:
    node.serve(behind_a_front(proxy=False))
    node.start_haproxy(proxy=False)


def plain_nginx(node: FrontNode) -> None:
    node.serve(behind_a_front(proxy=False))
    node.start_nginx(proxy=False)


def told(node: FrontNode) -> dict[str, Any]:
    """The finding of a front, as `status` shows it."""
    eventually(lambda: any(f["kind"] == "front" for f in status(node)["findings"]), 15)
    found = status(node)["findings"]
    (one,) = (f for f in found if f["kind"] == "front")
    code, text = look(node)
    assert code == 1
    assert f"DEGRADED: {one['sentence']}\n" in text
    assert f"  do: {one['remedy']}\n" in text
    assert not any(f["kind"] == "no_flow" for f in found)  # whose remedy would help nobody
    return dict(one)


@pytest.mark.parametrize("front", [plain_haproxy, plain_nginx])
def test_without_the_proxy_protocol_it_is_said_that_nobody_can_be_limited(
    node: FrontNode, front: Front
) -> None:
    front(node)
    node.start()
    node.connect(clients(node.fingerprint))
    for device in devices(PEOPLE) * 2:
        assert len(node.arrive(device)) == 1
    one = told(node)
    assert "nobody who comes through it can be limited" in one["sentence"]
    assert "127.0.0.1:" in one["evidence"][-1]
    assert "send-proxy-v2" in one["remedy"] and "proxy_protocol on" in one["remedy"]
    assert not any(node.flows().values())


def test_marks_on_the_fronts_own_connections_are_no_limits_either(node: FrontNode) -> None:
    """As somebody does who takes the engine's ports for the service's."""
    node.configure("file", service_ports=[PORT, *INNER.values()])
    plain_haproxy(node)
    node.start()
    node.connect(clients(node.fingerprint))
    for _round in range(2):
        for device in devices(PEOPLE):
            node.arrive(device)
    eventually(lambda: any(node.flows().values()), WITHIN_S)
    assert not any(node.mark_of(flow) for flow in node.to_front())
    for _round in range(2):
        # The agent looks after some marks whether anything passes the classes.
        eventually(lambda: status(node)["follower"]["marked"] >= 5)
        for device in devices(PEOPLE) * 2:
            node.arrive(device)
    one = told(node)
    assert "begin on this node" in one["evidence"][-1]


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (behind_a_front(proxy=True), set()),
        (behind_a_front(proxy=False), {"xray_front"}),
        (with_fallback(xver=2), set()),
        (with_fallback(xver=0), {"xray_front"}),
    ],
    ids=["proxy", "plain", "xver 2", "xver 0"],
)
def test_the_engines_configuration_tells_before_the_first_client_comes(
    node: FrontNode, config: engine.Config, kinds: set[str]
) -> None:
    """What the role asks after it has started everything: ``status --engine``, and doctor."""
    config["log"] = {"access": str(node.log), "error": str(node.directory / "error.log")}
    (node.directory / "config.json").write_text(json.dumps(config))
    program = node.directory / "xray"
    program.write_text("#!/bin/sh\nread -r _\n")
    program.chmod(0o755)
    command = [str(program), "run", "-c", "config.json"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=node.directory)
    try:
        eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "xray\n")
        node.start()
        said = look(node, "--engine")[1]
        command = node.command("doctor", "--json", "--no-canary")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        child.kill()
        child.wait()
    found = [f for f in json.loads(done.stdout)["findings"] if f["kind"].startswith("xray_")]
    mine = [f for f in found if f"pid {child.pid}" in f["sentence"]]
    assert {f["kind"] for f in mine} == kinds, found
    assert all(f"DEGRADED: {f['sentence']}" in said for f in mine)
    assert all("users can be limited" in f["sentence"] for f in mine)
    # Of this one: an engine of another test may be told of, too.
    assert ("xray_front" in kinds) == any("takes no PROXY" in f["sentence"] for f in mine)
