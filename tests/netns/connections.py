"""Connections that only conntrack knows, and what the role's first look says of a node."""

from __future__ import annotations

import re

from ansible_collections.vff.qos.plugins.modules import qos_preflight

from vff_qos.core.settings import Settings

from .harness import Module, run


def connection(port: int, mark: int) -> None:
    run("conntrack", "-I", "-p", "udp", "-s", "192.0.2.9", "-d", "192.0.2.1", "--sport", str(port),
        "--dport", "443", "--timeout", "300", "--mark", hex(mark))  # fmt: skip


def marks() -> dict[int, int]:
    """Mark by source port."""
    listing = run("conntrack", "-L", "-p", "udp")
    found = re.findall(r"src=192\.0\.2\.9 .*?sport=(\d+) .*?mark=(\d+)", listing)
    return {int(port): int(mark) for port, mark in found}


def preflight(settings: Settings) -> list[str]:
    """What the role's first look at the node says about the new settings."""
    problems: list[str] = []
    module = Module(wan=settings.wan, ifb=settings.ifb, handle=f"{settings.major:x}")
    qos_preflight.check_wan(module, problems, [])
    qos_preflight.check_ifb(module, settings.wan, problems)
    return problems
