"""What the maps of services cost a packet, and a new connection, however many they hold."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from vff_qos.core.identities import parse_identities, with_identities
from vff_qos.core.plan.desired import our_table
from vff_qos.core.settings import Settings
from vff_qos.kernel.nft import replace_table
from vff_qos.kernel.packed.nft_elements import StaticMaps

from .rows import Report
from .world import run

_PORT, _PACKETS = 443, 100_000
_ROUNDS, _SOCKETS = 40, 500
_SETTINGS = Settings(service_ports=((_PORT, _PORT),))
#: The first of their ports; each service has one.
_FIRST = 10_000


def measure(report: Report, runs: int) -> None:
    """Datagrams through lo, in the kernel's time of whoever sends, with none, 1 and 5,000 services:
    of a connection that there is, and each of a new one."""
    report.progress("packets beside services")
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        for count in (0, 1, 5_000):
            with contextlib.closing(StaticMaps()) as maps:
                _put(maps, count)
            for name, cost_us in (("known", _known), ("new", _new)):
                found.setdefault(f"{name}.{count}", []).append(cost_us())
                run("conntrack", "-F")
    for name, values in found.items():
        report.add(f"static.us_per_datagram.{name}", values, "us")
    run("nft", "delete", "table", "inet", "vff_qos")


def _put(maps: StaticMaps, count: int) -> None:
    """As bootstrap and the agent do."""
    entries = ", ".join(f"s{n}: {{ports: [{_FIRST + n}]}}" for n in range(count))
    text = f"services: {{{entries}}}".encode()
    identities = parse_identities(text, "identities.yml", _SETTINGS.service_ports)
    replace_table(our_table(with_identities(_SETTINGS, identities)))
    if count:
        marks = {key: 0x51000010 + number for number, key in enumerate(identities.keys)}
        maps.replace(identities.elements(marks))


def _known() -> float:
    """Datagrams of one connection."""
    with _server(), _client() as client:
        packet, send = bytes(1_200), client.send
        send(packet)
        return _cost_us(lambda: [send(packet) for _ in range(_PACKETS)]) / _PACKETS


def _new() -> float:
    """The first datagram of each connection."""
    total_us, packet = 0.0, bytes(1_200)
    with _server():
        for _ in range(_ROUNDS):
            with contextlib.ExitStack() as stack:
                sends = [stack.enter_context(_client()).send for _ in range(_SOCKETS)]
                total_us += _cost_us(partial(_send_once, sends, packet))
    return total_us / (_ROUNDS * _SOCKETS)


def _send_once(sends: Iterable[Callable[[bytes], int]], packet: bytes) -> None:
    for send in sends:
        send(packet)


@contextlib.contextmanager
def _server() -> Iterator[None]:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", _FIRST))
        yield


def _client() -> socket.socket:
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect(("127.0.0.1", _FIRST))
    return client


def _cost_us(what: Callable[[], object]) -> float:
    began = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
    what()
    return (time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID) - began) * 1e6
