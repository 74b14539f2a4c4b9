"""Recipes of docs/ENGINES.md with real programs: a forwarder's port is a customer."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vff_qos.kernel.packed.conntrack import Conntrack, decode_tuple
from vff_qos.kernel.packed.nft_elements import StaticMaps

from .harness import NODE, Network, eventually
from .static_node import put

CUSTOMERS = "services: {alice: {ports: [8001]}, bob: {ports: [8002-8004]}}\n"
_NGINX = """daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{}}
stream {{
  server {{ listen 8001; proxy_pass 127.0.0.1:9; }}
  server {{ listen 8002; proxy_pass 127.0.0.1:9; }}
  server {{ listen 8001 udp; proxy_pass 127.0.0.1:9; }}
}}
"""
_HAPROXY = """defaults
  mode tcp
  timeout connect 5s
  timeout client 5s
  timeout server 5s
listen alice
  bind :8001
  server target 127.0.0.1:9
listen bob
  bind :8002
  server target 127.0.0.1:9
"""
#: A client reads 60 bytes from a port, over TCP.
_READ = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as sock:
    assert sock.recv(60) == b"x" * 60
"""


def haproxy(directory: Path) -> list[list[str]]:
    (directory / "haproxy.cfg").write_text(_HAPROXY)
    return [["haproxy", "-db", "-f", str(directory / "haproxy.cfg")]]


def nginx(directory: Path) -> list[list[str]]:
    (directory / "nginx.conf").write_text(_NGINX.format(directory=directory))
    return [["nginx", "-c", str(directory / "nginx.conf"), "-e", str(directory / "nginx.log")]]


def socat(_directory: Path) -> list[list[str]]:
    return [
        ["socat", f"TCP-LISTEN:{port},fork,reuseaddr", "TCP:127.0.0.1:9"] for port in (8001, 8002)
    ]


@pytest.fixture(params=[haproxy, nginx, socat], ids=lambda made: made.__name__)
def forwarder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """A real program that forwards two customers' ports to one target."""
    make: Callable[[Path], list[list[str]]] = request.param
    if shutil.which(make.__name__) is None:
        pytest.skip(f"needs {make.__name__}")
    processes = [subprocess.Popen(words) for words in make(tmp_path)]
    try:
        for port in (8001, 8002):
            eventually(lambda p=port: _listens(p))
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_forwarders_port_is_its_customer(
    net: Network,
    maps: StaticMaps,
    forwarder: None,
) -> None:
    """Both directions bear the customer's mark; what the program fetches for them bears none."""
    marks = put(maps, CUSTOMERS)
    with socket.create_server(("127.0.0.1", 9)) as target:
        for port, name in ((8001, "alice"), (8002, "bob")):
            client = subprocess.Popen(net.enter("python3", "-c", _READ, NODE, str(port)))
            accepted, _peer = target.accept()
            accepted.sendall(b"x" * 60)
            assert client.wait(10) == 0
            conntrack = Conntrack()
            seen = [(e.mark, decode_tuple(e.tuple_raw)) for e in conntrack.dump()]
            conntrack.close()
            node = socket.inet_aton(NODE)
            outer = {mark for mark, flow in seen if flow and (flow.dst, flow.dport) == (node, port)}
            inner = {mark for mark, flow in seen if flow and flow.dport == 9}
            assert (outer, inner) == ({marks[f"service:{name}"]}, {0})
            accepted.close()
