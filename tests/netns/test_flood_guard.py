"""New connections from an address that floods the node are paced; nothing else is."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vff_qos.commands import bootstrap
from vff_qos.commands.killswitch import suspend
from vff_qos.core.plan.nft_table import FLOOD_BURST, FLOOD_PER_S
from vff_qos.core.settings import Settings
from vff_qos.errors import KernelRefused
from vff_qos.journal import Journal
from vff_qos.kernel.packed.nft_elements import FloodSets
from vff_qos.lock import Lock
from vff_qos.state import State

from .harness import CLIENT, CLIENT6, NODE, NODE6, Memory, Network, run

#: Sends one datagram from each of so many ports.
_FLOOD = """
import socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
for _ in range(count):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"new", (address, port))
"""


@pytest.fixture
def floods(net: Network) -> Iterator[FloodSets]:
    with closing(FloodSets()) as sets:
        yield sets


def passed(net: Network, address: str, port: int, count: int, local: bool = False) -> int:
    """How many of ``count`` new flows reach the node."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", port))
        sock.setblocking(False)
        command = [sys.executable, "-c", _FLOOD, address, str(port), str(count)]
        subprocess.run(command if local else net.enter(*command), check=True)
        found = 0
        while True:
            try:
                sock.recv(100)
            except BlockingIOError:
                return found
            found += 1


def dropped() -> int:
    shown = json.loads(run("nft", "-j", "list", "counter", "inet", "vff_qos", "flood_dropped"))
    return next(int(i["counter"]["packets"]) for i in shown["nftables"] if "counter" in i)


def keys() -> list[bytes]:
    return [socket.inet_aton(CLIENT), socket.inet_pton(socket.AF_INET6, CLIENT6)[:8]]


@pytest.mark.parametrize("address", [NODE, NODE6])
def test_only_new_connections_of_a_flooding_address_to_the_service_are_paced(
    net: Network,
    settings: Settings,
    floods: FloodSets,
    address: str,
) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, 443))
        old = subprocess.Popen(
            net.enter(sys.executable, "-uc", _OLD, address), stdin=-1, stdout=-1, text=True
        )
        data, peer = server.recvfrom(100)
        server.sendto(data, peer)  # from here on the flow is established
        assert old.stdout and old.stdin and old.stdout.readline() == "there\n"
        server.close()
        assert passed(net, address, 443, 60) == 60
        floods.pace(keys())
        began = time.monotonic()
        count = passed(net, address, 443, 60)
        most = FLOOD_BURST + FLOOD_PER_S * (time.monotonic() - began) + 1
        assert FLOOD_BURST <= count <= most
        assert dropped() == 60 - count
        assert passed(net, address, 22, 60) == 60
        assert passed(net, address, 443, 60, local=True) == 60
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, 443))
        server.settimeout(10)
        old.communicate("go\n")
        assert [server.recv(100) for _ in range(60)] == [b"old"] * 60
    # What differs by elements and counts is no difference.
    assert bootstrap.reconcile(settings, memory) == []
    saved = run("nft", "list", "ruleset")
    assert saved.count("limit rate over 5/second burst 10 packets") == 4
    # Somebody's `nft list ruleset >file; nft -f file` goes well while addresses are paced.
    run("nft", "-f", "-", stdin=f"flush ruleset\n{saved}")
    assert bootstrap.reconcile(settings, memory) == []
    assert passed(net, address, 443, 60) < 60
    floods.pace([], keys())
    assert passed(net, address, 443, 60) == 60


#: A flow that is there before the flood, and sends during it.
_OLD = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 443))
sock.send(b"hello")
sock.recv(100)
print("there")
sys.stdin.readline()
for _ in range(60):
    sock.send(b"old")
"""


def test_the_kill_switch_ends_it_and_without_a_table_there_is_an_error(
    net: Network,
    settings: Settings,
    floods: FloodSets,
    tmp_path: Path,
) -> None:
    with pytest.raises(KernelRefused):
        floods.pace(keys())
    floods.clear()  # nothing to clear is no error
    state = State(str(tmp_path))
    bootstrap.reconcile(settings, state)
    floods.pace(keys())
    floods.pace(keys())  # twice is no error
    suspend(settings, state, Lock(str(tmp_path)), Journal())
    assert "expires" not in run("nft", "list", "table", "inet", "vff_qos")
    assert passed(net, NODE, 443, 60) == 60


def test_the_sets_have_room_for_4096_addresses(
    settings: Settings,
    floods: FloodSets,
) -> None:
    bootstrap.reconcile(settings, Memory())
    addresses = [bytes([10, 1, i >> 8, i & 255]) for i in range(4_097)]
    floods.pace(addresses[:-1])
    with pytest.raises(KernelRefused, match="changing flood4 and flood6") as caught:
        floods.pace(addresses[-1:])
    assert caught.value.code == errno.ENFILE
    assert run("nft", "list", "table", "inet", "vff_qos").count("expires") == 4_096
    floods.pace([], addresses[:-1])
    assert "expires" not in run("nft", "list", "table", "inet", "vff_qos")
