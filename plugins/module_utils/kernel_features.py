# SPDX-License-Identifier: MIT
"""Which parts of the kernel are there: by its lists, and by doing where those are silent.

A kernel may have everything built in and no module tree (Firecracker, OrbStack, Linode), and a
container (LXC) sees neither the tree nor all of what its host has built in. There the lists of
modules say nothing, so each part is used once, in a network namespace that ends with the attempt.
"""

from __future__ import annotations

from typing import Iterable

#: Subsystem and a message that it answers at once: IPCTNL_MSG_CT_GET_STATS, NFT_MSG_GETGEN.
#: (linux/netfilter/nfnetlink_conntrack.h, nf_tables.h)
NETFILTER = {
    "nf_conntrack": (1, 5),
    "nf_conntrack_netlink": (1, 5),
    "nf_tables": (10, 16),
}
#: What to do with each part; `lo` is the only device of a new namespace. act_* stand alone, so that
#: a classifier that is missing does not count against them.
ATTEMPTS = {
    "ifb": "ip link add name vffprobe type ifb",
    "sch_htb": "tc qdisc add dev lo root handle 1: htb",
    "sch_tbf": "tc qdisc add dev lo root tbf rate 1mbit burst 9k latency 9ms",
    "sch_fq_codel": "tc qdisc add dev lo root fq_codel",
    "sch_cake": "tc qdisc add dev lo root cake",
    "sch_ingress": "tc qdisc add dev lo clsact",
    "cls_fw": "tc qdisc add dev lo clsact; tc filter add dev lo ingress protocol all prio 1 fw",
    "cls_flower": (
        "tc qdisc add dev lo clsact; "
        "tc filter add dev lo ingress protocol ip prio 1 flower ip_proto tcp dst_port 443"
    ),
    "act_ctinfo": "tc actions add action ctinfo cpmark",
    "act_mirred": "tc actions add action mirred egress redirect dev lo",
    "act_skbedit": "tc actions add action skbedit mark 1",
    "nft_ct": (
        "nft add table inet p; nft add chain inet p c; nft add rule inet p c ct mark set meta mark"
    ),
    "nft_chain_nat": (
        'nft add table inet p; nft add chain inet p c "{ type nat hook prerouting priority -100; }"'
    ),
    "nft_redir": (
        "nft add table inet p; "
        'nft add chain inet p c "{ type nat hook prerouting priority -100; }"; '
        "nft add rule inet p c udp dport 2 redirect to :1"
    ),
    "nft_fib_inet": (
        "nft add table inet p; nft add chain inet p c; nft add rule inet p c fib daddr type local"
    ),
}


def listed_modules(loaded: str, sys_module: Iterable[str], builtin: str, on_disk: str) -> set[str]:
    """Names of modules that the running kernel has or can load, as its lists have them.

    ``loaded`` is /proc/modules, ``sys_module`` the names in /sys/module (of what is built in, only
    what has parameters), ``builtin`` and ``on_disk`` are modules.builtin and modules.dep.
    """
    have = {line.split()[0] for line in loaded.splitlines() if line} | set(sys_module)
    for text in (builtin, on_disk):
        for line in text.splitlines():
            file = line.partition(":")[0].rpartition("/")[2]
            have.add(file.partition(".ko")[0].replace("-", "_"))
    return have


def attempt_script(names: Iterable[str]) -> str:
    """A shell script that tries each of ``names`` in a namespace of its own.

    It prints ``NAME yes``, ``NAME no: why`` or, where something that would try it is missing or
    forbidden, ``NAME tool: which``.
    """
    lines = [f"if ! unshare --net true 2>/dev/null; then {_all_without_unshare(names)}exit; fi"]
    for name in names:
        command = ATTEMPTS[name]
        tool = command.split()[0]
        lines.append(
            f"if ! command -v {tool} >/dev/null; then echo '{name} tool: {tool}'; "
            f"elif why=$(unshare --net sh -ec '{command}' 2>&1); then echo '{name} yes'; "
            f"else echo '{name} no:' $why; fi"
        )
    return "\n".join(lines)


def _all_without_unshare(names: Iterable[str]) -> str:
    return "".join(f"echo '{name} tool: unshare'; " for name in names)


def read_attempts(text: str) -> dict[str, tuple[str, str]]:
    """name -> (yes, no or tool, why) of what `attempt_script` has printed."""
    found = {}
    for line in text.splitlines():
        name, _space, rest = line.partition(" ")
        verdict, _colon, why = rest.partition(":")
        if name in ATTEMPTS and verdict in ("yes", "no", "tool"):
            found[name] = (verdict, why.strip())
    return found
