"""What ``status`` would say of this node, looked at by the follower and told in the journal.

A look costs 0.1 ms and comes with each report.  How many connections bear our mark only a dump of
them says: it comes as seldom as its cost wants, and at once when something else looks wrong.
"""

from __future__ import annotations

import time
from contextlib import closing

from .. import __version__
from ..core import events
from ..core.health.findings import Finding
from ..core.health.report import Report
from ..core.health.rules import Facts, judge
from ..core.pace import Pace
from ..core.settings import Settings
from ..errors import KernelRefused
from ..host_facts import ask_connections, look_at_host, ports_text
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack
from ..lock import Lock
from ..runfile import read_delivery
from ..told import LEFT_TO_COLLECTION, tell

#: Seen for so long a finding is told, gone for so long it is over; in seconds.
_SURE_S, _HOLD_S = 4.0, 30.0
#: Of dumps of the connections; and while they find what nothing else can see.
PACE = Pace(share=1 / 10_000, least_s=30.0, most_s=1_800.0)
_WRONG_PACE = Pace(share=1 / 1_000, least_s=5.0, most_s=600.0)
#: What needs one.
_OF_CONNECTIONS = frozenset({"classes_idle", "front", "marks_overwritten", "no_flow"})
#: Of these, what is seen only when marks are counted.
_OF_MARKS = frozenset({"marks_overwritten"})


class SelfCheck:
    """Looks when it is told to; all that it needs of the follower is in its report."""

    def __init__(self, run_dir: str, settings: Settings, lock: Lock, journal: Journal) -> None:
        self._run_dir, self._settings, self._lock, self._journal = run_dir, settings, lock, journal
        self._next_dump = time.monotonic() + PACE.least_s
        # Whether something of the connections was told and is not over, or waits for another look.
        self._is_told = self._is_open = False

    def look(self, report: Report) -> bool:
        """Judge what is seen now, and tell what is new.  Raises OSError if it cannot be remembered.

        Returns whether marks were counted, and others have overwritten some.
        A look that the kernel refuses is told, and the next one tries again.
        """
        facts = Facts(report.written, report, __version__)
        facts.service_ports = ports_text(self._settings)
        if self._settings.report_url:
            facts.delivery = read_delivery(self._run_dir)
        claimed = report.counts.get("flows_claimed", 0)
        # As if no mark was lost, until they are counted.
        facts.marked_flows = claimed if isinstance(claimed, int) else 0
        try:
            look_at_host(facts)
            findings, unseen = judge(facts), LEFT_TO_COLLECTION | _OF_CONNECTIONS
            is_due = time.monotonic() >= self._next_dump or self._is_open
            is_due |= _is_among(findings, _OF_CONNECTIONS - _OF_MARKS) != self._is_told
            if is_due:
                findings, unseen = self._look_at_connections(facts), LEFT_TO_COLLECTION
        except KernelRefused as error:
            self._journal.tell(events.KERNEL, error=str(error), effect="the node is not looked at")
            return False
        news = tell(
            self._run_dir, self._lock, self._journal, findings, lambda kind: kind not in unseen,
            _SURE_S, _HOLD_S,
        )  # fmt: skip
        known = {kind: one for kind, one in news.known.items() if kind in _OF_CONNECTIONS}
        self._is_told = any(one.is_told for kind, one in known.items() if kind not in _OF_MARKS)
        self._is_open = any(one.is_told == (one.gone_s is not None) for one in known.values())
        return is_due and _is_among(findings, _OF_MARKS)

    def _look_at_connections(self, facts: Facts) -> list[Finding]:
        """What is found when marks are counted.  Raises KernelRefused."""
        began_s = time.thread_time()
        layout = self._settings.layout
        with closing(Conntrack()) as conntrack:
            # What was given in advance is nobody's yet to the follower.
            facts.marked_flows = conntrack.count(layout.tag, layout.tag_mask)
            findings = judge(facts)
            if _is_among(findings, _OF_CONNECTIONS):
                # It takes five times as long, and says more.
                ask_connections(facts, conntrack, self._settings)
                findings = judge(facts)
        pace = _WRONG_PACE if _is_among(findings, _OF_MARKS) else PACE
        self._next_dump = time.monotonic() + pace.gap_s(time.thread_time() - began_s)
        return findings


def _is_among(findings: list[Finding], kinds: frozenset[str]) -> bool:
    return any(finding.kind in kinds for finding in findings)
