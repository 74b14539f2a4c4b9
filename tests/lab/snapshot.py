"""What is on a node, in a form that can be compared: nothing of ours may be left behind."""

from __future__ import annotations

from .node import Node

#: Name of a part and the command that prints it, a line for each thing.
_PARTS = {
    "links": "ip -br link | awk '{print $1, $2}' | sort",
    "qdiscs": "tc qdisc show | sort",
    "filters": "for dev in $(ls /sys/class/net); do for at in root ingress egress; do "
    'tc filter show dev $dev $at 2>/dev/null | sed "s/^/$dev $at /"; done; done',
    "nft ruleset": "nft -s list ruleset",
    "units": "systemctl list-unit-files --no-legend | grep -v '^run-' | sort",
    "users": "getent passwd; getent group",
    "packages": "dpkg-query -W -f '${Package} ${db:Status-Status}\\n'",
    # useradd keeps a copy of what it edits (passwd-), and so does dpkg (status-old).
    "files": "find /etc /opt /usr/local /var/lib/vff-qos /run/vff-qos /var/log/vff-qos -xdev "
    "2>/dev/null | grep -Ev -- '-$|/etc/ld.so.cache|__pycache__' | sort",
    "marks": "conntrack -L -o extended 2>/dev/null | grep -o 'mark=[1-9][0-9]*' | sort | uniq -c",
}


def snapshot(node: Node) -> dict[str, list[str]]:
    """All parts of the node's state, by name."""
    script = "; ".join(f"echo '@@{name}'; {command}" for name, command in _PARTS.items())
    parts: dict[str, list[str]] = {}
    for line in node.run(script, check=False).stdout.splitlines():
        if line.startswith("@@"):
            parts[line[2:]] = []
        else:
            parts[list(parts)[-1]].append(line)
    return parts


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What ``after`` has more (+) or less (-), a line each; empty if they are equal."""
    found = []
    for name in _PARTS:
        old, new = before[name], after[name]
        found += [f"- {name}: {line}" for line in old if line not in new]
        found += [f"+ {name}: {line}" for line in new if line not in old]
    return found
