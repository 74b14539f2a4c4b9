"""What is wrong with a node: the rules behind ``status``, ``doctor`` and the Ansible module.

Longer than 400 lines: one short rule beside the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .delivery import Delivery, unreported
from .findings import DEGRADED, OK, TROUBLE, Finding, hidden_by_front, worst_first
from .report import Report, SourceHealth

#: A source that says nothing for so long while so many connections begin, and are there, is silent.
#: Scanners make a few that no engine tells of.
SILENT_S, SILENT_BORN, SILENT_LIVE = 20.0, 10, 5
#: A share of connections that are nobody's is told from so many on.
UNOWNED_SHARE, UNOWNED_MIN = 0.5, 20
#: What is seen now and then is told for so long afterwards.
LATELY_S = 600.0
#: Repairs within a minute that are no chance, and for how long after the last one.
FIGHT_REPAIRS, FIGHT_S = 3, 30.0
#: Claims within a minute that named no flow: so many, and so great a share.
LOST_MIN, LOST_SHARE = 5, 0.5
#: Behind the source by so much is worth a look, in seconds.
LAG_S = 10.0
#: A share of the conntrack table.
FULL = 0.9
#: Marks that should be there and are not: so many, and so great a share.
MISSING_MIN, MISSING_SHARE = 3, 0.2
_NAMED = 3
#: Kinds of findings that need no follower that tells of itself.
WITHOUT_FOLLOWER = frozenset(
    {
        "disabled", "suspended", "not_set_up", "follower", "policy", "settings", "state",
        "tcp_memory", "conntrack_full", "no_class", "reports",
    }
)  # fmt: skip


@dataclass
class Facts:
    """What was seen of a node.  Times in seconds since the epoch; empty text: nothing to tell."""

    now_s: float
    report: Report | None = None
    #: Of this program.
    version: str = ""
    #: What the service manager says of a follower that does not run.
    unit: str = ""
    #: Who has disabled the node by hand.
    disabled: str = ""
    suspended: bool = False
    #: Why there is no tree.
    not_set_up: str = ""
    state: str = ""
    #: What is wrong with the files on disk, with file and line.
    policy_problem: str = ""
    settings_problem: str = ""
    identities_problem: str = ""
    #: Whether the follower has read the files as they are on disk.
    policy_is_current: bool = True
    settings_are_current: bool = True
    identities_are_current: bool = True
    tcp_memory: str = ""
    conntrack_count: int = 0
    conntrack_max: int = 0
    #: Users with live flows and without a class.
    busy_without_class: list[str] = field(default_factory=list)
    idle_without_class: int = 0
    #: Live flows that bear a mark of ours.
    marked_flows: int = 0
    #: Live flows to the service ports that bear none; None: not counted.
    unmarked_flows: int | None = None
    #: Where connections of which claims spoke really go: {our port: how many}.
    claimed_ports: dict[int, int] = field(default_factory=dict)
    service_ports: str = ""
    #: What of ``report.not_found``, and (while no traffic passes) of ``marked_flows``, begins here.
    lost_from_here: list[str] = field(default_factory=list)
    marked_from_here: int = 0
    #: How reports of usage go; None: nobody is told.
    delivery: Delivery | None = None


def judge(facts: Facts) -> list[Finding]:
    """Everything that is wrong, worst first."""
    findings = list(_set_up(facts))
    report = facts.report
    if report is not None and not facts.suspended:
        findings += [*_sources(facts, report), *_claims(facts, report), *_marks(facts, report)]
        findings += [*_repairs(facts, report), *_follower(facts, report)]
        findings += [*_static(report), *_people(report)]
    return worst_first(
        [*findings, *_files(facts), *_kernel(facts), *unreported(facts.delivery, facts.now_s)]
    )


def _static(report: Report) -> Iterator[Finding]:
    wanted, have = (report.counts.get(f"static_{n}", 0) for n in ("identities", "in_force"))
    if have != wanted:
        yield Finding(
            DEGRADED, "static",
            f"{have} of {wanted} services and networks are in force; the others have no limit yet",
            "nothing, if the number grows: their classes are being made; else 'vff-qos doctor'",
        )  # fmt: skip


def _people(report: Report) -> Iterator[Finding]:
    if report.joined_entries:
        yield Finding(
            DEGRADED, "people",
            "the policy has entries for identities that people are joined of; they count for "
            "nobody",
            "give what they say to the person's own name, or take the identity out of the people",
            report.joined_entries,
        )  # fmt: skip


def _set_up(facts: Facts) -> Iterator[Finding]:
    if facts.disabled:
        yield Finding(
            DEGRADED, "disabled",
            f"{facts.disabled}: nobody is limited, also after a reboot",
            "'vff-qos enable' brings the limits back",
        )  # fmt: skip
    elif facts.suspended:
        yield Finding(
            DEGRADED, "suspended", "suspended by hand: nobody is limited",
            "'vff-qos enable' brings the limits back",
        )  # fmt: skip
    elif facts.not_set_up:
        yield Finding(
            TROUBLE, "not_set_up", f"not set up: {facts.not_set_up}; nobody is limited",
            "run 'vff-qos bootstrap', or the role",
        )  # fmt: skip
    if facts.report is None and not facts.disabled and not facts.suspended:
        yield Finding(
            DEGRADED, "follower",
            "the follower does not run: limits of open connections hold, new ones have none",
            "'systemctl start vff-qos-follow' starts it; "
            "'journalctl -u vff-qos-follow -n 50' says why it ended",
            [facts.unit] if facts.unit else [],
        )  # fmt: skip


def _files(facts: Facts) -> Iterator[Finding]:
    for what, problem, current, remedy in (
        (
            "policy", facts.policy_problem, facts.policy_is_current,
            "'vff-qos check-config' checks it",
        ),
        (
            "settings", facts.settings_problem, facts.settings_are_current,
            "'systemctl restart vff-qos-follow' has the agent read them",
        ),
        (
            "identities", facts.identities_problem, facts.identities_are_current,
            "'vff-qos check-config' checks it",
        ),
    ):  # fmt: skip
        are = "is" if what == "policy" else "are"
        if problem:
            yield Finding(
                DEGRADED, what,
                f"the {what} on disk {are} not in force: {problem}; the last good "
                f"{'one stays' if what == 'policy' else 'ones stay'} in force",
                f"mend the line; {remedy}",
            )  # fmt: skip
        elif not current:
            yield Finding(
                DEGRADED, what, f"the {what} on disk {are} not what the follower has read", remedy
            )


def _kernel(facts: Facts) -> Iterator[Finding]:
    state = facts.state or (facts.report.state if facts.report else "")
    if state:
        yield Finding(
            DEGRADED, "state", f"the state cannot be written: {state}",
            "make room, or have the file system writable; it is brought back by itself",
        )  # fmt: skip
    if facts.tcp_memory:
        yield Finding(DEGRADED, "tcp_memory", facts.tcp_memory, "lower net.ipv4.tcp_rmem[2]")
    if facts.conntrack_max and facts.conntrack_count >= FULL * facts.conntrack_max:
        share = facts.conntrack_count / facts.conntrack_max
        yield Finding(
            DEGRADED, "conntrack_full",
            f"the conntrack table is {'full' if share >= 1 else 'nearly full'}: connections that "
            "find no room get no mark, or are dropped",
            f"'sysctl -w net.netfilter.nf_conntrack_max={2 * facts.conntrack_max}', and in a file "
            "of /etc/sysctl.d",
            [f"nf_conntrack_count {facts.conntrack_count} of {facts.conntrack_max}"],
        )  # fmt: skip
    if facts.busy_without_class and not facts.suspended and not facts.disabled:
        names = facts.busy_without_class
        rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield Finding(
            DEGRADED, "no_class",
            "without a class in the kernel, so without a limit, until the agent makes it anew: "
            f"{', '.join(names[:_NAMED])}{rest}",
            "the follower makes it within a second while it runs; 'vff-qos bootstrap' if the tree "
            "is not whole",
            names,
        )  # fmt: skip
    if facts.idle_without_class:
        yield Finding(
            OK, "no_class_idle",
            f"no class: {facts.idle_without_class} users get theirs with their next connection",
        )  # fmt: skip


def _sources(facts: Facts, report: Report) -> Iterator[Finding]:
    several = len(report.sources) > 1
    for source in report.sources:
        yield from _source(facts, source, f" of {source.name}" if several else "")
    if report.sources:
        yield from _silence(facts, report)


def _is_masked(source: SourceHealth) -> bool:
    masked = source.last.get("masked")
    return masked is not None and masked >= source.last.get("claims", 0.0)


def _source(facts: Facts, source: SourceHealth, whose: str) -> Iterator[Finding]:
    """What is wrong with one of them; ``whose``: its users, if there are those of others."""
    if source.waiting:
        yield Finding(
            DEGRADED, "source_missing", f"nobody new{whose} is limited: {source.waiting}",
            "'vff-qos doctor' asks it, too; docs/ENGINES.md (sing-box) has its configuration"
            if source.kind == "singbox"
            else "name the log that the engine writes in settings.yml (xray_access_log_path, or "
            "path under sources), or have the engine write this one; 'vff-qos doctor' looks for it",
        )  # fmt: skip
    if _is_masked(source):
        yield Finding(
            DEGRADED, "masked", f"{source.origin}: addresses are masked, so nobody can be limited",
            'remove "maskAddress" from the proxy\'s "log" settings and restart it',
            [f"{source.log.get('masked', 0)} masked lines"],
        )  # fmt: skip
    elif _lately(facts, source.last, "error_log"):
        yield Finding(
            DEGRADED, "mixed",
            f"{source.origin}: access and error log share one stream, in which strangers can "
            "forge lines",
            'give "error" in the proxy\'s "log" settings its own file and restart it; this is said '
            f"until {LATELY_S / 60:.0f} min after the last such line",
            [f"{source.log.get('error_log', 0)} lines of an error log"],
        )  # fmt: skip
    if source.lag_s >= LAG_S:
        yield Finding(
            DEGRADED, "lag", f"the follower is {source.lag_s:.0f} s behind {source.origin}",
            "look for what else uses the processor; after a restart it passes",
        )  # fmt: skip


def _silent_one(facts: Facts, report: Report, source: SourceHealth) -> Iterator[Finding]:
    """One of several says nothing of connections to its own ports, of which nobody else does."""
    quiet_s = facts.now_s - max(source.last_claim_s or 0.0, report.started)
    if (
        not _is_masked(source)
        and quiet_s >= SILENT_S
        and source.flows_since_claim >= SILENT_BORN
        and source.nobodys_since_claim >= SILENT_LIVE
    ):
        yield Finding(
            DEGRADED, "source_silent",
            f"{source.name} ({source.origin}) is silent while its ports are busy: nobody new there "
            "is limited",
            "look whether the engine writes there at all, and whether its users have an email; "
            "'vff-qos doctor' looks into its configuration",
            [f"{source.nobodys_since_claim} open connections to its ports began since its last "
             f"claim, {quiet_s:.0f} s ago, and are nobody's",
             f"lines read: {source.log.get('lines', 0)}"],
        )  # fmt: skip


def _silence(facts: Facts, report: Report) -> Iterator[Finding]:
    """No source says anything of connections that there are, or one says nothing of its own."""
    known, nobodys = _number(report, "flows_known"), _nobodys(report)
    last_claim_s = max(source.last_claim_s or 0.0 for source in report.sources)
    born = min(source.flows_since_claim for source in report.sources)
    since = max(last_claim_s, report.started)
    is_waiting = any(source.waiting for source in report.sources)  # a finding of its own
    if (
        not is_waiting
        and not any(_is_masked(source) for source in report.sources)
        and born >= SILENT_BORN
        and nobodys >= SILENT_LIVE
    ):
        if facts.now_s - since < SILENT_S:
            return  # nobody says anything of these yet: it is no single one's silence
        evidence = [
            f"{born} new connections since the last claim, "
            f"{facts.now_s - since:.0f} s ago; {nobodys} of {known} open ones are nobody's",
            f"lines read: {report.log.get('lines', 0)}",
        ]
        if "connections" in report.log:
            evidence.append(f"posted: {report.log['connections']} connections, refused "
                            f"{report.log.get('refused') or 'none'}")  # fmt: skip
        origins = ", ".join(source.origin for source in report.sources)
        yield Finding(
            DEGRADED, "source_silent",
            f"{origins}: silent while the service ports are busy: nobody new is limited"
            if len(report.sources) > 1
            else f"{origins} is silent while the service ports are busy: nobody new is limited",
            "look whether the engine writes there at all (\"access\" in its log settings, in "
            "sing-box's \"level\": \"info\"), and whether its users have an email; "
            "'vff-qos doctor' looks into its configuration",
            evidence,
        )  # fmt: skip
        return
    for source in report.sources if len(report.sources) > 1 else ():
        if not source.waiting:
            yield from _silent_one(facts, report, source)
    if (
        not is_waiting
        and known >= UNOWNED_MIN
        and nobodys > UNOWNED_SHARE * known
        # Else the source is silent, or was a moment ago: another finding.
        and born < SILENT_BORN
    ):
        yield Finding(
            DEGRADED, "unowned",
            f"{nobodys / known:.0%} of the connections to the service ports are nobody's",
            "look for inbounds whose users have no email; 'vff-qos doctor' does, and "
            "'vff-qos explain IP:PORT' says of one why it is nobody's",
            [f"{nobodys} of {known}"],
        )  # fmt: skip


def _claims(facts: Facts, report: Report) -> Iterator[Finding]:
    yield from _lost_claims(facts, report)
    for kind, name, sentence, remedy in _LATELY:
        if _lately(facts, report.last, name):
            yield Finding(DEGRADED, kind, sentence, remedy, [f"{_count(report, name)} until now"])


def _lost_claims(facts: Facts, report: Report) -> Iterator[Finding]:
    recent, last = report.recent, report.last
    lost = recent.get("no_flow", 0)
    found = recent.get("marked", 0) + recent.get("kept", 0)
    if (
        lost >= LOST_MIN
        and lost >= LOST_SHARE * (lost + found)
        and last.get("no_flow", 0.0) >= last.get("marked", 0.0)
    ):
        evidence = [f"{lost} of {lost + found} claims of the last minute named no connection"]
        if 2 * len(facts.lost_from_here) > len(report.not_found):
            yield hidden_by_front([*evidence, f"the latest is from {facts.lost_from_here[-1]}"])
            return
        ports = sorted(facts.claimed_ports, key=lambda port: -facts.claimed_ports[port])
        evidence += [
            f"{facts.claimed_ports[port]} of them go to port {port}, which is none of the service "
            f"ports ({facts.service_ports})"
            for port in ports[:_NAMED]
        ]
        if not ports:
            evidence.append(f"the latest come from {', '.join(report.not_found[-_NAMED:])}")
        yield Finding(
            DEGRADED, "no_flow",
            "users' connections do not go to the service ports"
            + (f" but to {', '.join(map(str, ports[:_NAMED]))}" if ports else "")
            + ": they are not limited",
            f"set service_ports in settings.yml (qos_service_ports), now {facts.service_ports}, "
            "to the ports of the engine's inbounds; behind a relay or CDN see TROUBLESHOOTING",
            evidence,
        )  # fmt: skip


#: Kind, counter, sentence, remedy of what is told while it was lately.
_LATELY = (
    (
        "no_port", "log.no_port",
        "clients' addresses come from a header (port 0): such connections cannot be limited",
        "take trustedXForwardedFor out of the inbound's sockopt, or limit where the clients arrive",
    ),
    (
        "exhausted", "exhausted", "no class is left for new users: they share one",
        "lower gc_idle_sec, so that idle users are collected sooner",
    ),
    (
        "conflict", "conflicts", "connections were claimed by two users each: they are restricted",
        "'journalctl -u vff-qos-follow' names them; somebody forges lines, or a port was reused",
    ),
)  # fmt: skip


def _marks(facts: Facts, report: Report) -> Iterator[Finding]:
    # What a comparison has found to be overwritten is nobody's since.
    claimed = _number(report, "flows_claimed") + _number(report, "flows_robbed")
    there = facts.marked_flows
    missing = claimed - there
    if facts.unmarked_flows is not None:
        # The report is some seconds old: what has ended since has lost no mark.
        missing = min(missing, facts.unmarked_flows)
    if missing >= MISSING_MIN and missing > MISSING_SHARE * claimed:
        yield Finding(
            DEGRADED, "marks_overwritten",
            f"{missing} of {claimed} connections have lost the mark that limits them: other "
            "software overwrites connection marks",
            "have its rules keep marks that are set (ct mark 0x51000000/0x7fff0000 is ours), or "
            "change only its own bits; 'vff-qos doctor' looks for the rules",
            [f"{there} connections bear our mark, {claimed} should"],
        )  # fmt: skip
    elif _lately(facts, report.last, "foreign_mark", 60.0):
        yield Finding(
            DEGRADED, "foreign_mark",
            "connections bear marks of other software and are left as they are: not limited",
            "have that software leave the service ports' connections alone; 'vff-qos doctor' "
            "looks for its rules",
            [f"{_number(report, 'foreign_mark')} until now"],
        )  # fmt: skip
    traffic = report.traffic
    if traffic is not None and 0 in (traffic.up_bytes, traffic.down_bytes):
        evidence = [
            f"{traffic.marked} connections were marked within "
            f"{traffic.until_s - traffic.since_s:.0f} s, {traffic.up_bytes} bytes up and "
            f"{traffic.down_bytes} bytes down passed the classes"
        ]
        here = facts.marked_from_here
        if 2 * here > there:
            yield hidden_by_front([*evidence, f"{here} of {there} begin on this node"])
            return
        how = "upload" if traffic.down_bytes else "download" if traffic.up_bytes else "traffic"
        yield Finding(
            DEGRADED, "classes_idle",
            f"connections are marked, but no {how} passes the users' classes: it is not limited",
            "look whether if_wan is the interface that clients come by, and for flowtables or "
            "offloads; 'vff-qos doctor' does",
            evidence,
        )  # fmt: skip


def _repairs(facts: Facts, report: Report) -> Iterator[Finding]:
    repair = report.repair
    if repair.failed:
        yield Finding(
            DEGRADED, "repair_failed", f"the last repair failed: {repair.failed}",
            "'vff-qos bootstrap --plan' says what is missing; TROUBLESHOOTING has the causes",
        )  # fmt: skip
    if (
        report.recent.get("repairs", 0) >= FIGHT_REPAIRS
        and repair.healed_s is not None
        and facts.now_s - repair.healed_s < FIGHT_S
    ):
        who = f" by '{repair.culprit}'" if repair.culprit else ""
        process = f", the last after process {repair.culprit_pid}" if repair.culprit else ""
        yield Finding(
            DEGRADED, "contended",
            f"what is ours in the kernel is deleted again and again{who}",
            "find what does it and have it leave table inet vff_qos alone: a cron job or timer "
            "with 'nft flush ruleset', a firewall's reload",
            [
                f"{report.recent['repairs']} repairs within {report.recent_s:.0f} s{process}",
                "; ".join(repair.changes[:_NAMED]),
            ],
        )  # fmt: skip


def _follower(facts: Facts, report: Report) -> Iterator[Finding]:
    if report.void_orders:
        yield Finding(
            DEGRADED, "orders", report.void_orders[0],
            "give it again, or 'vff-qos reset EMAIL'", report.void_orders,
        )  # fmt: skip
    if report.version and facts.version and report.version != facts.version:
        yield Finding(
            DEGRADED, "version",
            f"the follower is version {report.version}, what is installed {facts.version}",
            "'systemctl restart vff-qos-follow': limits and marks stay meanwhile",
        )  # fmt: skip
    if report.clock_set_s is not None and facts.now_s - report.clock_set_s < LATELY_S:
        yield Finding(
            DEGRADED, "clock",
            f"the clock was set by {report.clock_set_by_s:+.1f} s: until it keeps still, lines "
            "count less",
            "look at 'timedatectl' and 'chronyc tracking'",
        )  # fmt: skip
    if report.counts.get("flows_known_by") == "look-ups":
        yield Finding(
            DEGRADED, "look_ups",
            "the kernel tells of no connections, so that they are looked up one by one: 2,000 new "
            "ones a second at most",
            "'sysctl -w net.netfilter.nf_conntrack_events=2'; after a flood it passes by itself",
        )  # fmt: skip


def _nobodys(report: Report) -> int:
    """Connections that are nobody's, but for those that were somebody's and have lost the mark."""
    somebodys = _number(report, "flows_claimed") + _number(report, "flows_robbed")
    return _number(report, "flows_known") - somebodys


def _lately(facts: Facts, last: dict[str, float], name: str, for_s: float = LATELY_S) -> bool:
    return name in last and facts.now_s - last[name] < for_s


def _number(report: Report, name: str) -> int:
    value = report.counts.get(name, 0)
    return value if isinstance(value, int) else 0


def _count(report: Report, name: str) -> int:
    if name.startswith("log."):
        return int(report.log.get(name.removeprefix("log."), 0))
    return _number(report, name)
