"""Packets per second through the tree, by number of users; runs on a node of its own.

The tree is made by the agent's own code on a dummy device in a network namespace for each case (it
keeps one tree in each); pktgen sends small packets through each in turn.

Reads a job (JSON) on standard input: {"users": [numbers], "peer_users": number, "rounds",
"packets"}. Writes {"one": {case: [packets per second of each round]}, "all": the same}: packets of
one user while the others are silent, and packets of all users by turns.  What a node has before us
is measured, too, with the same hook that marks: each of ROOTS, and no qdisc; and one user where
there are two trees, each in a queue.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2 import netns

from vff_qos.commands.bootstrap import reconcile
from vff_qos.commands.steps import carry_out
from vff_qos.core.htb import FIRST_USER_MINOR, HtbClass, classid, usable_minor, user_class
from vff_qos.core.plan.desired import desired
from vff_qos.core.plan.diff import Operation
from vff_qos.core.settings import Settings
from vff_qos.kernel.packed.tc import ClassKey, Tc, add_class

PKTGEN = Path("/proc/net/pktgen")
PACKET_BYTES = 200
LIMIT_BPS = 1_000_000_000  # never reached: what is measured is the way through
#: Nobody borrows from the node: one user would need to, and many by turns would not.
WITHIN = user_class(LIMIT_BPS, guaranteed_bps=LIMIT_BPS)
#: As the agent makes it without a guarantee in the policy: whoever sends this much borrows.
BEYOND = user_class(LIMIT_BPS)
FIRST_MAJOR = 0x5100
#: Of two trees: its lower byte is a queue.
MAJOR_OF_TWO = 0x5200
#: Qdiscs that nodes have as root before us; the first is a device without any.
ROOTS = ("noqueue", "fq_codel", "fq")


class Memory:
    """What bootstrap would keep in the state."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get_value(self, key: str) -> Any:
        return self._values.get(key)

    def set_value(self, key: str, value: Any) -> None:
        self._values[key] = value


def sh(command: str, stdin: str = "") -> None:
    subprocess.run(["sh", "-euc", command], input=stdin, text=True, check=True, stdout=sys.stderr)


def device(name: str, queues: int = 1) -> int:
    """A device that swallows what it is given, in a namespace of its name that is entered.

    Returns its index.
    """
    netns.create(name)
    netns.setns(name)
    sh(f"ip link add {name} numtxqueues {queues} type dummy; ip link set {name} up")
    return socket.if_nametoindex(name)


def mark_users(name: str, major: int, users: int) -> None:
    """Spread the packets of a device over its users, as marks from conntrack would."""
    netns.setns(name)
    first = classid(major, FIRST_USER_MINOR)
    sh(
        "nft -f -",
        f"""
        add table netdev dp
        add chain netdev dp {name} {{ type filter hook egress device {name} priority 0; }}
        flush chain netdev dp {name}
        add rule netdev dp {name} meta mark set jhash udp sport mod {users} offset {first}
        """,
    )


def add_users(index: int, major: int, users: int, params: HtbClass) -> None:
    """Classes as the agent makes them."""
    tc = Tc()
    minors = range(FIRST_USER_MINOR, FIRST_USER_MINOR + users)
    for minor in minors:
        if not usable_minor(major, minor):
            raise SystemExit(f"minor {minor:#x} cannot be used beside major {major:#x}")
        failed = tc.attempt(add_class(ClassKey(index, major, minor), 1, params, "fq_codel"))
        if failed:
            raise SystemExit(f"adding class {minor:#x}: {failed}")


def tree(name: str, major: int, users: int, params: HtbClass) -> None:
    """The agent's tree with its one filter."""
    index = device(name)
    settings = replace(Settings(), wan=name, ifb=f"ifb-{name}", major=major)
    reconcile(settings, Memory())
    add_users(index, major, users, params)


def two_trees(name: str, major: int, params: HtbClass) -> None:
    """The agent's trees of two queues; the device does not say that it has them, so that bootstrap
    would make one."""
    index = device(name, queues=2)
    settings = replace(Settings(), wan=name, ifb=f"ifb-{name}", major=major, trees=2)
    carry_out(settings, [Operation("add", item) for item in desired(settings, name, queues=2)])
    add_users(index, major, 1, params)


def root(name: str, qdisc: str) -> None:
    """A device with a qdisc as most nodes have it."""
    device(name)
    if qdisc != "noqueue":
        sh(f"tc qdisc replace dev {name} root {qdisc}")


def filter_per_user(name: str, major: int, users: int) -> None:
    """Put one filter for each user in the place of ours, as older tools do."""
    netns.setns(name)
    sh(f"tc filter del dev {name} parent {major:x}: pref 65535")
    lines = [
        f"filter add dev {name} parent {major:x}: pref {minor} protocol all "
        f"handle {classid(major, minor):#x} fw flowid {major:x}:{minor:x}"
        for minor in range(FIRST_USER_MINOR, FIRST_USER_MINOR + users)
    ]
    sh("tc -batch -", "\n".join(lines) + "\n")


def send(name: str, packets: int) -> float:
    """Send small packets from many ports; returns packets per second."""
    netns.setns(name)
    (PKTGEN / "kpktgend_0").write_text("rem_device_all\n")
    (PKTGEN / "kpktgend_0").write_text(f"add_device {name}\n")
    for line in (
        f"count {packets}",
        f"pkt_size {PACKET_BYTES}",
        "xmit_mode queue_xmit",
        "flag UDPSRC_RND",
        "udp_src_min 1024",
        "udp_src_max 65000",
        "dst 192.0.2.1",
        "dst_mac 02:00:00:00:00:01",
    ):
        (PKTGEN / name).write_text(line + "\n")
    (PKTGEN / "pgctrl").write_text("start\n")
    found = re.search(r"(\d+)pps", (PKTGEN / name).read_text())
    if not found:
        raise SystemExit(f"pktgen on {name}: {(PKTGEN / name).read_text()}")
    return float(found[1])


def main() -> None:
    job = json.load(sys.stdin)
    sh("modprobe pktgen")
    device("dp-none")
    trees = [(f"{users} users", f"dp-{users}", users) for users in job["users"]]
    trees.append(("one filter per user", "dp-peer", job["peer_users"]))
    trees.append(("1 user who borrows", "dp-borrows", 1))
    for major, (case, name, users) in enumerate(trees, FIRST_MAJOR):
        print(f"lab: a tree with {case} ({users})", file=sys.stderr, flush=True)
        tree(name, major, users, BEYOND if name == "dp-borrows" else WITHIN)
    filter_per_user("dp-peer", FIRST_MAJOR + len(job["users"]), job["peer_users"])
    two_trees("dp-two", MAJOR_OF_TWO, WITHIN)
    roots = [(f"{qdisc} root", f"dp-{qdisc}", qdisc) for qdisc in ROOTS]
    for _case, name, qdisc in roots:
        root(name, qdisc)
    report: dict[str, dict[str, list[float]]] = {}
    for senders in ("one", "all"):
        for major, (_case, name, users) in enumerate(trees, FIRST_MAJOR):
            mark_users(name, major, users if senders == "all" else 1)
        for _case, name, _qdisc in roots:
            mark_users(name, FIRST_MAJOR, 1 if senders == "one" else job["peer_users"])
        cases = [("no shaping", "dp-none"), *(case[:2] for case in roots + trees)]
        if senders == "one":
            mark_users("dp-two", MAJOR_OF_TWO, 1)
            cases.append(("1 user of two trees", "dp-two"))
        rates: dict[str, list[float]] = {case: [] for case, _name in cases}
        for _ in range(job["rounds"]):
            for case, name in cases:
                rates[case].append(send(name, job["packets"]))
        report[senders] = rates
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
