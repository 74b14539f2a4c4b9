"""What is on a node, as text that can be compared: nothing of ours may be left behind."""

from __future__ import annotations

import difflib
import re

from .node import Node

_SNAPSHOT = r"""
exec 2>&1
# The lab's own links get new addresses at each boot, and udev gives them more names or not, as it
# looks at them before or after they are renamed.
echo "## links";    ip -d link show | sed '/^ *altname /d; s/ qlen [0-9]*//; s/ether [0-9a-f:]*//'
echo "## qdiscs";   tc qdisc show
echo "## filters";  for hook in '' ingress egress; do tc filter show dev wan0 $hook; done
echo "## nft";      nft list ruleset
echo "## marks";    conntrack -L --mark 0x51000000/0x7f000000 -o id 2>/dev/null
echo "## units";    systemctl list-unit-files --no-legend --no-pager
echo "## accounts"; getent passwd; getent group
echo "## packages"; dpkg-query -W
echo "## etc";      find /etc -type f ! -name '*-' ! -name ld.so.cache -print0 | sort -z |
                    xargs -0 sha256sum
echo "## files";    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp \
                    -o -path /var/tmp -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg \
                    -o -path /var/lib/apt -o -path /var/lib/systemd -o -path /root/.ansible \
                    -o -path /opt/lab \) -prune -o -print | sort
echo "## run";      find /run -maxdepth 1 -name 'vff*'
"""


#: What a single packet changes, in text and JSON of `tc qdisc show`: an HTB counts those for which
#: it had no class, and the kernel sends some by itself (IPv6 neighbour discovery).
COUNTED = r' direct_packets_stat \d+|"direct_packets_stat":\d+,?'


def without_counts(shown: str) -> str:
    """What ip, tc and nft have shown, without what a single packet changes."""
    return re.sub(COUNTED, "", shown)


def snapshot(node: Node) -> str:
    """Links, qdiscs, filters, rules, marks, units, accounts, packages, files."""
    return without_counts(node.ssh(_SNAPSHOT))


def difference(before: str, after: str) -> list[str]:
    """What `after` has more (+) or less (-), a line each; empty if they are equal."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]
