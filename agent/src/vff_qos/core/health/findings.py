"""What is wrong, how badly, by which evidence, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

OK, DEGRADED, TROUBLE = "OK", "DEGRADED", "TROUBLE"
#: Exit codes of `status` and `doctor`, and the order of findings.
EXIT_CODES = {OK: 0, DEGRADED: 1, TROUBLE: 2}
#: What to do where a front on the node hides its clients.
SHOW_CLIENTS = (
    "have the front send the PROXY protocol (HAProxy: send-proxy-v2, nginx: proxy_protocol on, a "
    'fallback of Xray: "xver": 2) and the inbound take it (sockopt: "acceptProxyProtocol": true); '
    "service_ports (qos_service_ports) are the front's"
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    ``level``: `DEGRADED` where limits hold in part, `TROUBLE` where they do not, `OK` where it is
    only worth knowing.  ``kind`` names it for programs; ``sentence`` says it to people,
    ``evidence`` is what was seen, ``remedy`` what to do.
    """

    level: str
    kind: str
    sentence: str
    remedy: str = ""
    evidence: list[str] = field(default_factory=list)


def hidden_by_front(evidence: list[str]) -> Finding:
    """The engine sees a front's connections: what passes the WAN device is the client's connection
    to the front, which nobody names."""
    return Finding(
        DEGRADED,
        "front",
        "the engine names addresses of this node instead of the clients': a front on this node "
        "hides them, and nobody who comes through it can be limited",
        SHOW_CLIENTS,
        evidence,
    )


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """In the order in which a person should read them; equals stay as they are."""
    return sorted(findings, key=lambda finding: -EXIT_CODES[finding.level])


def verdict(findings: Iterable[Finding]) -> tuple[str, str]:
    """(level, reason) of the whole: those of the worst finding, `OK` and no reason without one."""
    ordered = worst_first(findings)
    if not ordered or ordered[0].level == OK:
        return OK, ""
    return ordered[0].level, ordered[0].sentence
