"""``vff-qos doctor``: finds the usual trouble and says what to do.  Changes nothing."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import json
import os
import pwd
import stat
import subprocess
import sys
import time
from typing import Any

from .. import __version__
from ..core.health import host as host_rules
from ..core.health import singbox_stream, xray
from ..core.health.findings import EXIT_CODES, OK, Finding, verdict, worst_first
from ..core.health.host import Canary, Host, LogFile
from ..core.health.rules import judge
from ..core.plan.desired import desired
from ..core.plan.handles import INGRESS, leads
from ..core.plan.objects import Filter
from ..core.settings import Settings
from ..core.source_settings import sources_of
from ..errors import KernelRefused, QosError, Refused
from ..kernel.devices import wan_link
from ..kernel.packed.filter_list import read_filters
from ..kernel.packed.links import read_links
from ..kernel.packed.netlink import Netlink
from ..kernel.sysctls import read_sysctl
from ..runfile import write_diagnosis
from ..sources.runtimes import inside
from .engines import ask_singboxes, read_engines
from .facts import look
from .node import Node

_LOGROTATE = ("/etc/logrotate.conf", "/etc/logrotate.d")
#: The canary's limit in bit/s, and how long it may take in seconds.
_CANARY_BPS, _CANARY_S = 8_000_000, 40
#: TIME_ERROR of adjtimex(2): the clock is not synchronized.
_TIME_ERROR = 5


def read_diagnosis(node: Node, canary: bool = True) -> dict[str, Any]:
    """Everything ``doctor`` shows, as JSON; ``canary``: prove that limits hold, too.

    Raises KernelRefused.
    """
    seen = look(node)
    findings = judge(seen.facts)
    settings = seen.settings
    if settings is not None:
        engines = read_engines(settings)
        if not engines and sources_of(settings.sources, *xray.SOURCES):
            findings.append(Finding(OK, "xray", "no process of Xray's name runs on this host"))
        findings += xray.examine(engines, settings)
        findings += singbox_stream.examine(ask_singboxes(settings, node.paths))
        host = _read_host(node, settings)
        host.canary = _let_out_canary(settings) if canary else None
        findings += host_rules.examine(host, settings)
    findings = worst_first(findings)
    level, reason = verdict(findings)
    return {
        "verdict": level,
        "reason": reason,
        "version": __version__,
        "findings": [vars(finding) for finding in findings],
    }


def keep(node: Node, found: dict[str, Any]) -> None:
    """Leave it for the page.  Raises Refused where that is not possible."""
    try:
        write_diagnosis(node.paths.run_dir, {**found, "time": time.time()})
    except OSError as error:
        raise Refused(f"--keep: {node.paths.run_dir}: {os.strerror(error.errno or 0)}") from error


def exit_code(found: dict[str, Any]) -> int:
    """As that of ``status``."""
    return EXIT_CODES[found["verdict"]]


def render(found: dict[str, Any]) -> str:
    """The same for people: what is wrong, then what was found well."""
    head = f"{found['verdict']}: {found['reason'] or 'nothing is wrong'}"
    lines = [head, ""]
    for finding in found["findings"]:
        if finding["level"] == OK:
            lines.append(f"ok: {finding['sentence']}")
            continue
        lines.append(f"{finding['level']}: {finding['sentence']}")
        lines += [f"  seen: {evidence}" for evidence in finding["evidence"]]
        lines.append(f"  do: {finding['remedy']}")
    return "\n".join(lines)


# -- the host -------------------------------------------------------------------------------------


def _read_host(node: Node, settings: Settings) -> Host:
    host = Host()
    host.logs = [
        _read_log(one.options["path"], one.type)
        for one in sources_of(settings.sources, "file", "singbox_log")
        if one.options["path"] and not one.options.get("container")
    ]
    for name, *_ in host_rules.SYSCTLS:
        try:
            host.sysctls[name] = read_sysctl(name).value
        except KernelRefused as error:
            host.sysctls[name] = str(error)
    _read_ruleset(host)
    host.default_routes = host_rules.parse_default_routes(
        _text("/proc/net/route"), _text("/proc/net/ipv6_route")
    )
    try:
        link = wan_link(settings)
    except Refused:
        return host  # told as "not set up"
    host.wan = link.name
    netlink = Netlink(0)
    host.mtu = read_links(netlink)[link.name].mtu
    netlink.close()
    _read_plan(node, settings, host)
    host.filters = _foreign_filters(settings, link.ifindex, link.name, host.mtu)
    host.clock_synchronized = _clock_is_synchronized()
    mem, rmem = _text("/proc/sys/net/ipv4/tcp_mem"), _text("/proc/sys/net/ipv4/tcp_rmem")
    if mem and rmem:
        pages, most = int(mem.split()[1]), int(rmem.split()[2])
        room = pages * os.sysconf("SC_PAGE_SIZE")
        host.tcp_memory = (
            f"TCP may buffer {room / 1e6:.0f} MB in all and {most / 1e6:.1f} MB for each "
            f"connection: {room // most} full ones"
        )
    return host


def _stat(path: str) -> os.stat_result:
    """Of a file that our unit may hide from us (ProtectHome=): as the host's first process sees it,
    whose root CAP_SYS_PTRACE opens.  Raises OSError, of our own view."""
    try:
        return os.stat(path)
    except OSError:
        with contextlib.suppress(OSError):  # without the capability, or it is not there either
            return os.stat(inside("/proc/1/root", path))
        raise


def _read_log(path: str, source: str) -> LogFile:
    try:
        status = _stat(path)
    except OSError as error:
        return LogFile(path, os.strerror(error.errno or 0), source=source)
    if not stat.S_ISREG(status.st_mode):
        return LogFile(path, "is not a regular file", source=source)
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
        owner += f":{grp.getgrgid(status.st_gid).gr_name}"
    except KeyError:
        owner = f"{status.st_uid}:{status.st_gid}"
    return LogFile(
        path, "", owner, stat.S_IMODE(status.st_mode), status.st_size,
        max(0.0, time.time() - status.st_mtime), _copytruncate(path), source,
    )  # fmt: skip


def _copytruncate(path: str) -> str:
    names = [_LOGROTATE[0]]
    if os.path.isdir(_LOGROTATE[1]):
        names += sorted(os.path.join(_LOGROTATE[1], name) for name in os.listdir(_LOGROTATE[1]))
    return next((n for n in names if host_rules.copytruncates(_text(n), path)), "")


def _text(path: str) -> str:
    """A small file of the system's; empty if there is none, or it is not for us."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return ""


def _read_ruleset(host: Host) -> None:
    try:
        done = subprocess.run(
            ["nft", "-j", "list", "ruleset"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except FileNotFoundError:
        host.ruleset_problem = "there is no program nft"
        return
    if done.returncode:
        host.ruleset_problem = done.stderr.strip()
        return
    host.ruleset = json.loads(done.stdout)["nftables"]


def _read_plan(node: Node, settings: Settings, host: Host) -> None:
    try:
        # The rest works without pyroute2 and libnftables.
        from .bootstrap import reconcile

        host.plan = reconcile(node.planned(settings), node.state, dry_run=True)
    except (QosError, ImportError) as error:
        host.plan_problem = str(error)


def _let_out_canary(settings: Settings) -> Canary:
    given = {"major": settings.major, "leaf": settings.leaf, "limit_bps": _CANARY_BPS}
    command = [sys.executable, "-m", "vff_qos.commands.canary", json.dumps(given)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_CANARY_S
        )
        return Canary(_CANARY_BPS, **json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return Canary(_CANARY_BPS, problem=f"it did not end within {_CANARY_S} s")
    except ValueError:
        said = done.stderr.strip().splitlines()
        return Canary(_CANARY_BPS, problem=said[-1] if said else "it said nothing")


def _foreign_filters(settings: Settings, ifindex: int, wan: str, mtu: int) -> list[str]:
    ours = {
        (item.place.hook, item.place.chain, item.place.pref)
        for item in desired(settings, wan, mtu)
        if isinstance(item, Filter) and item.place.dev == wan
    }
    found = []
    for hook in (INGRESS, "egress"):
        for item in read_filters(ifindex, hook, settings.major):
            if leads(hook, item.chain, item.pref, item.kind):
                continue
            if (hook, item.chain, item.pref) not in ours:
                found.append(f"{hook}: chain {item.chain} pref {item.pref} {item.kind}")
    return found


def _clock_is_synchronized() -> bool | None:
    """What the kernel knows of NTP (adjtimex(2)); None where it does not say."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct timex is 208 bytes on 64-bit systems; all zeroes read and change nothing.
    state = libc.adjtimex(ctypes.create_string_buffer(512))
    return None if state < 0 else state != _TIME_ERROR
