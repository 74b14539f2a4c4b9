"""What other software has in the kernel, and whether packets leave in their class beside it."""

from __future__ import annotations

import json
import re

from .harness import Client, Node, run

#: What leaves by a device with a mark; the last look before the qdisc.
SPY = """
table netdev spy {{
  counter marked {{ }}
  chain out {{
    type filter hook egress device lo priority 0
    tcp sport 4430 tcp dport {port} meta mark {mark} counter name marked
  }}
}}
"""


def others() -> str:
    """Everybody's rules but ours, without counts."""
    tables = re.split(r"(?m)^(?=table )", run("nft", "-s", "list", "ruleset"))
    return "".join(text for text in tables if not text.startswith("table inet vff_qos"))


def counted(*table: str) -> int:
    """Packets that the only counter of a table has seen."""
    listing = json.loads(run("nft", "-j", "list", "counters", "table", *table))["nftables"]
    (count,) = [item["counter"]["packets"] for item in listing if "counter" in item]
    return int(count)


def answers(node: Node, client: Client) -> int:
    """How many answers to a client leave with its class as their mark."""
    run("nft", "-f", "-", stdin=SPY.format(port=client.port, mark=node.mark(client)))
    client.sock.sendall(b"x")  # is acknowledged
    count = counted("netdev", "spy")
    run("nft", "delete", "table", "netdev", "spy")
    return count
