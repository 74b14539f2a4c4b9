"""Static identities in the kernel: what a packet finds in the maps, and how they are changed."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from dataclasses import replace

import pytest

from vff_qos.core.flows.ends import ServiceEnds
from vff_qos.core.identities import StaticFlows, parse_identities, with_identities
from vff_qos.core.plan.nft_table import normal_table, table
from vff_qos.errors import KernelRefused
from vff_qos.kernel import nft
from vff_qos.kernel.packed.conntrack import Conntrack, decode_tuple
from vff_qos.kernel.packed.netlink import NETLINK_NETFILTER, Netlink
from vff_qos.kernel.packed.nft_elements import StaticMaps, clear_elements
from vff_qos.kernel.packed.nftables import encode

from .harness import CLIENT, CLIENT6, NODE, NODE6, Network, exchange, run
from .static_node import SETTINGS, TAG, put

FILE = f"""
services:
  low: {{ports: [1-99, 9000], protocol: udp}}
  next: {{ports: [100-110], protocol: udp}}
  high: {{ports: [65000-65535]}}
  here: {{ports: [7000-7003], address: {NODE}}}
  here6: {{ports: [7000], address: "{NODE6}", protocol: udp}}
networks:
  office: {{prefixes: [{CLIENT}/31, "{CLIENT6}"]}}
  rest: {{prefixes: ["192.0.2.0/24", "255.255.255.128/25", "2001:db8::/32"]}}
"""


def marks_of(port: int, address: str) -> list[int]:
    """The marks of flows with one end there."""
    conntrack = Conntrack()
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    found = []
    for entry in conntrack.dump():
        flow = decode_tuple(entry.tuple_raw)
        if flow and (packed, port) in ((flow.dst, flow.dport), (flow.src, flow.sport)):
            found.append(entry.mark)
    conntrack.close()
    return found


@pytest.mark.parametrize(
    ("port", "address", "whose"),
    [
        (9000, NODE, "service:low"),
        (9000, NODE6, "service:low"),
        (99, NODE, "service:low"),
        (100, NODE, "service:next"),
        (110, NODE, "service:next"),
        (111, NODE, None),
        (64999, NODE, None),
        (65535, NODE6, "service:high"),
        (7003, NODE, "service:here"),
        (7004, NODE, None),
        (7000, NODE6, "service:here6"),
        (7001, NODE6, None),
        (443, NODE, "network:office"),
        (443, NODE6, "network:office"),
    ],
)
def test_the_first_packet_of_a_flow_is_marked(
    net: Network, maps: StaticMaps, port: int, address: str, whose: str | None
) -> None:
    """Real datagrams; what is no service's and to no service port has no mark, from an office
    either: SSH from there has no limit."""
    marks = put(maps, FILE)
    exchange(net, address, port)
    assert marks_of(port, address) == [marks[whose] if whose else 0]


def test_python_says_the_same_as_the_kernel(net: Network, maps: StaticMaps) -> None:
    """`StaticFlows` gives open flows to whoever has their port, so that both must agree."""
    marks = put(maps, FILE)
    found = parse_identities(FILE.encode(), "", SETTINGS.service_ports)
    ends = ServiceEnds(
        SETTINGS.service_ports, [socket.inet_aton(NODE), socket.inet_pton(socket.AF_INET6, NODE6)]
    )
    for port in (99, 100, 111, 443, 7000, 9000, 65535):
        for address in (NODE, NODE6):
            exchange(net, address, port)
    static_flows = StaticFlows(found, marks)
    conntrack = Conntrack()
    seen = [(entry.mark, decode_tuple(entry.tuple_raw)) for entry in conntrack.dump()]
    conntrack.close()
    assert len([flow for _mark, flow in seen if flow and flow.proto == 17]) >= 14
    for mark, flow in seen:
        assert flow is None or static_flows.mark(flow, ends) == mark, flow


def test_the_kernel_lists_the_table_as_it_was_made(net: Network, maps: StaticMaps) -> None:
    """Or each look would make it anew."""
    put(maps, FILE)
    found = parse_identities(FILE.encode(), "", SETTINGS.service_ports)
    wanted = normal_table(table(with_identities(SETTINGS, found)))
    have = nft.read_table()
    assert have is not None and normal_table(have.objects) == wanted


def test_a_flow_that_our_side_picks_up_has_its_mark_again(net: Network, maps: StaticMaps) -> None:
    """Somebody has emptied conntrack's table, and the node is the next to speak."""
    marks = put(maps, FILE)
    client = net.enter(
        "python3", "-c",
        "import socket, sys\n"
        f"s = socket.create_connection(('{NODE}', 65000)); print('up', flush=True)\n"
        "assert s.recv(9) == b'x'; s.close()",
    )  # fmt: skip
    with socket.create_server((NODE, 65000)) as listener:
        process = subprocess.Popen(client, stdout=subprocess.PIPE, text=True)
        accepted, _peer = listener.accept()
        assert process.stdout and process.stdout.readline() == "up\n"
        conntrack = Conntrack()
        for entry in conntrack.dump():
            conntrack.set_entries([(entry, 0)])
        conntrack.close()
        run("conntrack", "-F")
        accepted.send(b"x")
        assert process.wait(5) == 0
        assert marks_of(65000, NODE) == [marks["service:high"]]
        accepted.close()


def test_a_mark_of_other_software_stays(net: Network, maps: StaticMaps) -> None:
    put(maps, FILE)
    run(
        "nft", "-f", "-",
        stdin="table inet other {\n chain a {\n  type filter hook prerouting priority -170\n"
        "  udp dport 9000 ct mark set 0x7\n }\n}\n",
    )  # fmt: skip
    exchange(net, NODE, 9000)
    assert marks_of(9000, NODE) == [7]


def test_what_passes_the_node_is_no_service_and_is_its_networks(
    net: Network, maps: StaticMaps
) -> None:
    """A peer of an inner network reaches some host's port 9000: that is nobody's service here."""
    text = FILE.replace(f"{CLIENT}/31", "192.0.3.7")
    marks = put(maps, text)
    run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    run("ip", "address", "add", "198.51.100.1/24", "dev", "out0")
    run("ip", "link", "set", "out0", "up")
    run("ip", "link", "set", "out1", "up")
    run("ip", "neigh", "add", "198.51.100.9", "lladdr", "02:00:00:00:00:09", "dev", "out0")
    net.on_client("ip", "route", "add", "198.51.100.0/24", "via", NODE)
    net.on_client("ip", "address", "add", "192.0.3.7/32", "dev", "c0")
    run("ip", "route", "add", "192.0.3.7/32", "dev", "wan0")
    for source, wanted in ((CLIENT, 0), ("192.0.3.7", marks["network:office"])):
        net.on_client(
            "python3", "-c",
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            f"s.bind(('{source}', 0)); s.sendto(b'x', ('198.51.100.9', 9000))",
        )  # fmt: skip
        assert marks_of(9000, "198.51.100.9") == [wanted]
        run("conntrack", "-F")


def test_thousands_change_in_one_transaction(net: Network, maps: StaticMaps) -> None:
    """All of them, or none: a packet never finds half of them."""
    text = "services:\n" + "".join(
        f"  c{number}: {{ports: [{10_000 + 2 * number}]}}\n" for number in range(5_000)
    )
    put(maps, text)
    shift = parse_identities(text.replace(": [1", ": [4").encode(), "", ())
    changed = {key: TAG | 0x2000 + number for number, key in enumerate(shift.keys)}
    generation = _generation()
    maps.replace(shift.elements(changed))
    assert _generation() == generation + 1
    listed = json.loads(run("nft", "-j", "list", "map", "inet", "vff_qos", "tcp_ports"))
    assert len(listed["nftables"][1]["map"]["elem"]) == 5_000


def _generation() -> int:
    """The number of nf_tables transactions so far (NFT_MSG_GETGEN)."""
    netlink = Netlink(NETLINK_NETFILTER)
    _errors, replies = netlink.batch([lambda seq: encode(seq, 10 << 8 | 16, 0)])
    netlink.close()
    return int.from_bytes(replies[0].payload[8:12], "big")


def test_the_kill_switch_leaves_no_element(net: Network, maps: StaticMaps) -> None:
    put(maps, FILE)
    clear_elements(StaticMaps)
    exchange(net, NODE, 9000)
    assert marks_of(9000, NODE) == [0]
    run("nft", "delete", "table", "inet", "vff_qos")
    clear_elements(StaticMaps)  # there is nothing to clear
    with pytest.raises(KernelRefused) as refused:
        maps.replace(parse_identities(FILE.encode(), "").elements({"service:low": TAG | 2}))
    assert refused.value.code == errno.ENOENT


def test_on_a_node_that_is_a_tunnel_alone_all_of_a_peer_is_its_network(
    net: Network, maps: StaticMaps
) -> None:
    """As with qos_if_wan: wg0 and all service ports: what it reaches here, and through here."""
    marks = put(maps, FILE, replace(SETTINGS, service_ports=()))
    for port in (22_000, 5_353):
        exchange(net, NODE, port)
        assert marks_of(port, NODE) == [marks["network:office"]]
    exchange(net, NODE, 9000)
    assert marks_of(9000, NODE) == [marks["service:low"]]
