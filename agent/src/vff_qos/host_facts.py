"""What the kernel tells of a node's health without a look at all classes: for commands, and for the
follower, which looks every few seconds.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from contextlib import closing

from .core.flow import end_text
from .core.flows.ends import is_loopback, unmapped
from .core.health.rules import Facts
from .core.settings import Settings
from .errors import KernelRefused
from .kernel.packed.addresses import local_addresses
from .kernel.packed.conntrack import Conntrack, Entry, decode_tuple
from .kernel.packed.netlink import Netlink
from .kernel.sysctls import read_sysctl
from .kernel.tcpmem import TcpMemory, read_tcp_memory


def look_at_host(facts: Facts) -> TcpMemory:
    """TCP's memory and the size of the conntrack table.  Raises KernelRefused."""
    memory = read_tcp_memory()
    facts.tcp_memory = str(memory) if memory.is_short else ""
    facts.conntrack_count = _whole("net.netfilter.nf_conntrack_count")
    facts.conntrack_max = _whole("net.netfilter.nf_conntrack_max")
    return memory


def ask_connections(facts: Facts, conntrack: Conntrack, settings: Settings) -> None:
    """Where what the follower tells looks wrong, what the connections themselves say of it.

    ``facts.marked_flows`` must be known.  Raises KernelRefused.
    """
    report = facts.report
    if report is None:
        return
    counts = (report.counts.get(name, 0) for name in ("flows_claimed", "flows_robbed"))
    if sum(n for n in counts if isinstance(n, int)) > facts.marked_flows:
        facts.unmarked_flows = _unmarked(conntrack, settings)
    if report.recent.get("no_flow", 0):
        facts.claimed_ports = _ports_of(conntrack, report.not_found)
        is_ours = _own_addresses()
        facts.lost_from_here = [end for end in report.not_found if is_ours(_address(end))]
    traffic = report.traffic
    if traffic is not None and 0 in (traffic.up_bytes, traffic.down_bytes):
        facts.marked_from_here = _from_here(conntrack, settings)


def _unmarked(conntrack: Conntrack, settings: Settings) -> int:
    """How many connections to the service ports bear no mark of ours."""
    layout, ports = settings.layout, settings.service_ports

    def is_unmarked(entry: Entry) -> bool:
        if layout.is_ours(entry.mark) or (flow := decode_tuple(entry.tuple_raw)) is None:
            return False
        return not ports or any(low <= flow.dport <= high for low, high in ports)

    return conntrack.read(0, 0, lambda entries: sum(map(is_unmarked, entries)))


def _ports_of(conntrack: Conntrack, ends: list[str]) -> dict[int, int]:
    """Our ports that connections from some clients' ends go to."""
    wanted = set(ends)

    def port_of(entry: Entry) -> int:
        flow = decode_tuple(entry.tuple_raw)
        is_wanted = flow is not None and end_text(flow.src, flow.sport) in wanted
        return flow.dport if flow is not None and is_wanted else 0

    found = conntrack.read(0, 0, lambda entries: Counter(map(port_of, entries)))
    del found[0]
    return dict(found)


def _own_addresses() -> Callable[[bytes], bool]:
    """Tells whether a packed address is this node's."""
    with closing(Netlink(socket.NETLINK_ROUTE)) as netlink:
        ours = set(local_addresses(netlink))
    return lambda address: address in ours or is_loopback(address)


def _address(end: str) -> bytes:
    """The packed address of an end as `end_text` writes it."""
    text = end.rpartition(":")[0].strip("[]")
    return unmapped(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text))


def _from_here(conntrack: Conntrack, settings: Settings) -> int:
    """How many connections that bear our mark lead from this node to itself."""
    is_ours = _own_addresses()

    def is_from_here(entry: Entry) -> bool:
        flow = decode_tuple(entry.tuple_raw)
        return flow is not None and is_ours(unmapped(flow.src)) and is_ours(unmapped(flow.dst))

    layout = settings.layout
    return conntrack.read(layout.tag, layout.mask, lambda entries: sum(map(is_from_here, entries)))


def ports_text(settings: Settings) -> str:
    """The service ports as settings.yml has them."""
    ranges = (f"{a}" if a == b else f"{a}-{b}" for a, b in settings.service_ports)
    return ", ".join(ranges) or "all"


def _whole(name: str) -> int:
    """A number of the kernel's; 0 where it has none, or we may not see it."""
    try:
        value = read_sysctl(name).value
    except KernelRefused:
        return 0
    return int(value) if value and value.isdigit() else 0
