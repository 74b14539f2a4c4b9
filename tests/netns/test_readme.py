"""What README.md shows as the output of `vff-qos status` is what the command prints."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from checkout import ROOT

from .harness import MAJOR, Client, eventually, look, user
from .healing import WholeNode, plan_without_filters

POLICY = """
plans:
  basic: {upload: 20mbit, download: 50mbit}
  pro: {upload: 50mbit, download: 100mbit, weight: 4}
users:
  alice@example.com: {plan: pro}
  bob@example.com: {plan: basic}
  carol@example.com: {plan: basic}
  dave@example.com: {unlimited: true}
"""


def send(dev: str, minor: int, packets: int) -> None:
    """So many packets of 1,500 bytes through a class; SO_PRIORITY names it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MAJOR << 16 | minor)
        sock.bind((dev, 0))
        for _ in range(packets):
            sock.send(b"\xff" * 12 + b"\x88\xb5" + b"x" * 1_486)


def shape(text: str) -> str:
    """With N for each number, the spaces before it and a rate's unit: runs differ in figures."""
    return re.sub(r" *\d+([.:-]\d+)*([kmg]bit)?", " N", text).replace(" Nbit", " N")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WholeNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = WholeNode(tmp_path)
    yield made
    made.stop()


def test_the_status_in_the_readme_is_what_the_command_prints(node: WholeNode) -> None:
    text = ROOT.joinpath("README.md").read_text()
    (shown,) = re.findall(r"```console\n\$ vff-qos status\n(.*?)```", text, re.S)
    node.write_policy(POLICY)
    node.start()
    clients = {
        name: user(node, f"{name}@example.com") for name in ("alice", "bob", "carol", "dave")
    }
    more = [Client("127.0.0.1", 4430) for _ in range(5)]
    for client, name in zip(more, ("alice", "alice", "alice", "bob", "dave"), strict=True):
        node.write(client.line(f"{name}@example.com"))
        eventually(partial(node.mark, client))
    for name, up, down in (
        ("alice", 600, 9_000),
        ("bob", 150, 2_400),
        ("carol", 80, 400),
        ("dave", 900, 12_000),
    ):
        mark = node.mark(clients[name])
        assert mark
        send("vffqos0", mark & 0xFFFF, up)
        send("wan0", mark & 0xFFFF, down)
    node.run(
        "limit",
        "carol@example.com",
        "--download",
        "5mbit",
        "--for",
        "2h",
        "--reason",
        "ticket 4711",
    )
    eventually(lambda: " 9 lines" in look(node)[1], 12)  # it tells others every five seconds
    printed = look(node)[1].replace(str(node.log), "/var/log/xray/access.log")
    assert shape(printed) == shape(shown), printed
