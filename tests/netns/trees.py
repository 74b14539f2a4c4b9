"""What a namespace needs before there is a node in it."""

from __future__ import annotations

from .harness import run

# Conntrack sees nothing in a namespace until a rule there uses it.
TRACK = """
table inet track {
  chain in { type filter hook input priority 0; ct state new counter; }
  chain out { type filter hook output priority 0; ct state new counter; }
}
"""


def make_trees() -> tuple[str, str]:
    """Two devices with the HTB trees that bootstrap makes (names of IFB and WAN).

    Leaves are pfifo and nothing classifies: kernels without fq_codel and cls_fw run this, too.
    """
    for ours, peer in (("wan0", "wan1"), ("vffqos0", "up1")):
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", peer)
        run("ip", "link", "set", ours, "up")
        run("ip", "link", "set", peer, "up")
        run("tc", "qdisc", "add", "dev", ours, "root", "handle", "5100:", "htb", "default", "fffe")
        for parent, minor in (("5100:", "1"), ("5100:1", "fffe")):
            run(
                "tc",
                "class",
                "add",
                "dev",
                ours,
                "parent",
                parent,
                "classid",
                f"5100:{minor}",
                "htb",
                "rate",
                "100gbit",
                "burst",
                "1m",
                "cburst",
                "1m",
                "quantum",
                "60000",
            )
    return "vffqos0", "wan0"
