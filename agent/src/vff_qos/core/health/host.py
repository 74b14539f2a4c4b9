"""What of the host keeps limits from holding: the checks of ``doctor`` beside those of the node.

Pure: what was read goes in, findings come out, also of level `OK` for what was found well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..plan.nft_table import TABLE
from ..settings import Settings
from .findings import DEGRADED, OK, Finding

#: Kernel parameters: name, what it must not be, why, what to set.
SYSCTLS = (
    ("net.netfilter.nf_conntrack_events", "0", "connections are looked up one by one", "2"),
    ("net.netfilter.nf_conntrack_acct", "0", "'explain' cannot tell bytes of connections", "1"),
    ("net.netfilter.nf_conntrack_timestamp", "0", "the age of old connections is not known", "1"),
)
#: Only the first costs limits; the others cost answers.
_VITAL = {"net.netfilter.nf_conntrack_events"}
_MARK_MASK = 0x7FFF0000
#: Of the canary's limit: what TCP gets of it is 0.96, the bytes of headers are missing.
_TOO_FAST, _TOO_SLOW = 1.05, 0.7


@dataclass
class LogFile:
    """The access log as a file; ``problem`` says why it cannot be read."""

    path: str
    problem: str = ""
    owner: str = ""
    mode: int = 0
    size: int = 0
    idle_s: float = 0.0
    #: Configuration of logrotate that copies and truncates it.
    copytruncate: str = ""
    #: The type of the source that reads it.
    source: str = "file"


@dataclass(frozen=True)
class Canary:
    """What came through a class with a limit, in bit/s; ``problem`` says why nothing did."""

    limit_bps: int
    upload_bps: int = 0
    download_bps: int = 0
    problem: str = ""


@dataclass
class Host:
    """What was read of the host."""

    logs: list[LogFile] = field(default_factory=list)
    #: {name: value}; None: this kernel has none.
    sysctls: dict[str, str | None] = field(default_factory=dict)
    #: libnftables' JSON of the ruleset; None where it could not be read, and why.
    ruleset: list[dict[str, Any]] | None = None
    ruleset_problem: str = ""
    #: What bootstrap would change; the reason where it could not be found out.
    plan: list[str] = field(default_factory=list)
    plan_problem: str = ""
    #: Filters of others at the hooks of the WAN device.
    filters: list[str] = field(default_factory=list)
    #: Devices of default routes, by family.
    default_routes: dict[str, list[str]] = field(default_factory=dict)
    wan: str = ""
    mtu: int = 0
    clock_synchronized: bool | None = None
    tcp_memory: str = ""
    #: None: it was not let out.
    canary: Canary | None = None


def examine(host: Host, settings: Settings) -> Iterator[Finding]:
    """All checks."""
    for log in host.logs:
        yield from _log(log)
    yield from _sysctls(host)
    yield from _ruleset(host)
    yield from _tree(host)
    yield from _routes(host, settings)
    if host.clock_synchronized is False:
        yield Finding(
            DEGRADED, "clock_free", "NTP does not keep the clock: when it is set, lines count less",
            "'timedatectl set-ntp true', or install chrony",
        )  # fmt: skip
    elif host.clock_synchronized:
        yield Finding(OK, "clock_free", "the clock is kept by NTP")
    if host.mtu:
        split = (
            f"packets are split into {host.mtu} bytes and their header"
            if settings.split
            else ("packets are not split (wan_ceil is above 500 Mbit/s, or not set)")
        )
        yield Finding(OK, "mtu", f"MTU of {host.wan}: {host.mtu}; {split}")
    if host.canary is not None:
        yield from _canary(host.canary)
    if host.tcp_memory:
        yield Finding(OK, "tcp_buffers", host.tcp_memory)


def _log(log: LogFile) -> Iterator[Finding]:
    if log.problem:
        yield Finding(
            DEGRADED, "log_file", f"{log.path}: {log.problem}",
            "have sing-box write there (\"log\": {\"level\": \"info\", \"timestamp\": true, "
            f"\"output\": \"{log.path}\"}}), or name the file that it writes as the source's path"
            if log.source == "singbox_log"
            else "set xray_access_log_path, or path under sources, to the file that the engine "
            "writes",
        )  # fmt: skip
        return
    yield Finding(
        OK, "log_file",
        f"{log.path}: {log.owner} {log.mode:04o}, {log.size} bytes, last written "
        f"{log.idle_s:.0f} s ago",
    )  # fmt: skip
    if log.copytruncate:
        yield Finding(
            DEGRADED, "copytruncate",
            f"{log.copytruncate} rotates {log.path} with copytruncate: lines that come between "
            "copy and truncation are lost",
            "rotate with 'create' and without 'copytruncate'; the engine goes on with the old "
            "file for a while, and the agent reads both",
        )  # fmt: skip


def _sysctls(host: Host) -> Iterator[Finding]:
    for name, bad, why, good in SYSCTLS:
        value = host.sysctls.get(name)
        if value is None and name in host.sysctls:
            yield Finding(OK, "sysctl", f"{name}: this kernel or namespace has none; {why}")
        elif value == bad:
            yield Finding(
                DEGRADED if name in _VITAL else OK, "sysctl", f"{name} is {value}: {why}",
                f"'sysctl -w {name}={good}', and in a file of /etc/sysctl.d",
            )  # fmt: skip


def _ruleset(host: Host) -> Iterator[Finding]:
    if host.ruleset is None:
        yield Finding(OK, "ruleset", f"nftables' rules could not be read: {host.ruleset_problem}")
        return
    for item in host.ruleset:
        if "flowtable" in item:
            table = item["flowtable"]
            hardware = "offload" in str(table.get("flags", ""))
            yield Finding(
                DEGRADED, "flowtable",
                f"flowtable {table.get('family')} {table.get('table')} {table.get('name')}: what "
                f"it takes passes no marks and no classes{' (in hardware)' if hardware else ''}",
                "keep the service ports out of it, or remove it: a proxy's own connections are not "
                "forwarded and gain nothing",
            )  # fmt: skip
        rule = item.get("rule")
        if rule and rule.get("table") != TABLE and (how := _writes_marks(rule)):
            place = f"{rule.get('family')} {rule.get('table')} {rule.get('chain')}"
            yield Finding(
                DEGRADED, "mark_rule",
                f"a rule in {place} (handle {rule.get('handle')}) {how}: connections lose the "
                "mark that limits them, or have another one before",
                f"have it leave the service ports alone, and what has ct mark & {_MARK_MASK:#x} == "
                "0x51000000",
            )  # fmt: skip


def _writes_marks(rule: dict[str, Any]) -> str:
    """How a rule writes connection marks; empty if it does not."""
    for statement in rule.get("expr", ()):
        mangle = statement.get("mangle") if isinstance(statement, dict) else None
        if mangle and mangle.get("key") == {"ct": {"key": "mark"}}:
            return "sets connection marks"
        xt = statement.get("xt") if isinstance(statement, dict) else None
        if xt and xt.get("type") == "target" and xt.get("name") == "CONNMARK":
            return "sets connection marks (CONNMARK)"
    return ""


def _tree(host: Host) -> Iterator[Finding]:
    if host.plan_problem:
        yield Finding(
            DEGRADED, "kernel_objects",
            f"what is in the kernel cannot be checked: {host.plan_problem}",
            "'vff-qos bootstrap --plan' says more",
        )  # fmt: skip
    elif host.plan:
        yield Finding(
            DEGRADED, "kernel_objects", "the kernel is not as the settings say",
            "'vff-qos bootstrap' brings it there; where a kernel lacks what is missing, it says so",
            host.plan,
        )  # fmt: skip
    else:
        yield Finding(OK, "kernel_objects", "qdiscs, filters and nft table are as the settings say")
    if host.filters:
        yield Finding(
            DEGRADED, "foreign_filter",
            f"{host.wan} has filters of other software, which may take packets before ours do",
            "look at 'tc filter show dev WAN ingress' and 'egress'", host.filters,
        )  # fmt: skip


def _canary(canary: Canary) -> Iterator[Finding]:
    if canary.problem:
        yield Finding(
            DEGRADED, "canary",
            f"the canary could not prove on this kernel that limits hold: {canary.problem}",
            "a kernel without what is named cannot limit: install the distribution's full one, in "
            "a container on its host",
        )  # fmt: skip
        return
    limit = canary.limit_bps
    seen = (("upload", canary.upload_bps), ("download", canary.download_bps))
    evidence = [f"{how} {rate / 1e6:.2f} of {limit / 1e6:g} Mbit/s" for how, rate in seen]
    if broken := [how for how, rate in seen if rate > _TOO_FAST * limit]:
        yield Finding(
            DEGRADED, "canary",
            f"on this kernel a limit does not hold for the {' and the '.join(broken)} of a flow of "
            "our own",
            "compare the kernel with the tested ones (docs/INSTALL.md), and report it", evidence,
        )  # fmt: skip
    elif stuck := [how for how, rate in seen if rate < _TOO_SLOW * limit]:
        yield Finding(
            DEGRADED, "canary",
            f"on this kernel a flow of our own gets less than its limit: {', '.join(stuck)}",
            "look at 'st' in 'vmstat 1 5', and try again when the node is less busy", evidence,
        )  # fmt: skip
    else:
        yield Finding(
            OK, "canary", "a flow of our own was limited in both directions", "", evidence
        )  # fmt: skip


def _routes(host: Host, settings: Settings) -> Iterator[Finding]:
    for family, devices in host.default_routes.items():
        others = sorted(set(devices) - {host.wan})
        if host.wan and others:
            yield Finding(
                DEGRADED, "default_routes",
                f"{family} has default routes by {', '.join(sorted(set(devices)))}: what leaves by "
                f"{', '.join(others)} is not limited",
                "name the interface that clients come by (if_wan, qos_if_wan)"
                if settings.wan == "auto"
                else f"well if clients come by {host.wan} alone; else remove the other route",
            )  # fmt: skip


def parse_default_routes(ipv4: str, ipv6: str) -> dict[str, list[str]]:
    """Devices of default routes from /proc/net/route and /proc/net/ipv6_route."""
    found: dict[str, list[str]] = {}
    for line in ipv4.splitlines()[1:]:
        # Iface, Destination, Gateway, Flags, RefCnt, Use, Metric, Mask
        parts = line.split()
        if len(parts) > 7 and parts[1] == parts[7] == "00000000":
            found.setdefault("IPv4", []).append(parts[0])
    for line in ipv6.splitlines():
        # destination, its prefix, source, its prefix, next hop, metric, refs, use, flags, device
        parts = line.split()
        if len(parts) > 9 and parts[0] == "0" * 32 and parts[1] == "00" and parts[9] != "lo":
            found.setdefault("IPv6", []).append(parts[9])
    return found


def copytruncates(text: str, path: str) -> bool:
    """Whether a configuration of logrotate truncates ``path``: its block, or a default above it."""
    bare = re.sub(r"#[^\n]*", "", text)
    outside = re.sub(r"[^\n{}]*\{[^}]*\}", "", bare)
    default = re.search(r"^\s*copytruncate\b", outside, re.MULTILINE) is not None
    for heads, body in re.findall(r"((?:[^{}\n]*/[^{}\n]*\n?)+)\{([^}]*)\}", bare):
        if any(fnmatchcase(path, word.strip("\"'")) for word in heads.split()):
            if re.search(r"\bnocopytruncate\b", body):
                return False
            return default or re.search(r"\bcopytruncate\b", body) is not None
    return False
